"""Storage of sparse kernels: one bit for each weight, and the values of the kept weights."""

from typing import Any

import numpy as np

from irp_jax.graph import ChannelGraph
from irp_jax.pruning.masks import Masks, kernel_shape

BITS, VALUES = "_bits", "_values"


def pack(params: dict[str, Any], masks: Masks) -> dict[str, np.ndarray]:
    """Replaces each masked kernel by NAME_bits (uint8) and NAME_values (the kept weights).

    Args:
        params: name -> array.
        masks: name of a kernel -> logits, positive where the weight is kept.

    Returns:
        All other arrays, and two arrays for each masked kernel. Pruned weights are not stored.
    """
    packed = {name: np.asarray(array) for name, array in params.items()}
    for name, logits in masks.items():
        kept = np.asarray(logits) > 0
        kernel = packed.pop(name)
        packed[name + BITS] = np.packbits(kept)
        # If no weight is kept, one unused value is stored, since orbax saves no empty array.
        packed[name + VALUES] = kernel[kept] if kept.any() else kernel.ravel()[:1]
    return packed


def unpack(
    graph: ChannelGraph, packed: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inverts `pack`: returns arrays with zeros at pruned weights, and masks of +1 and -1."""
    params = {name: np.asarray(array) for name, array in packed.items()}
    masks = {}
    for name in [name.removesuffix(BITS) for name in params if name.endswith(BITS)]:
        shape = kernel_shape(graph, name)
        bits = np.unpackbits(params.pop(name + BITS), count=int(np.prod(shape)))
        kept = bits.astype(bool).reshape(shape)
        values = params.pop(name + VALUES)
        params[name] = np.zeros(shape, values.dtype)
        params[name][kept] = values[: kept.sum()]
        masks[name] = np.where(kept, 1.0, -1.0).astype(np.float32)
    return params, masks
