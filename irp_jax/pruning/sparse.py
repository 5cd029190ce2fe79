"""Storing kernels of which most weights are zero: a bit a weight, and the values of those kept."""

from typing import Any

import jax
import numpy as np

from irp_jax.models import Architecture
from irp_jax.pruning.masks import Masks, kernel_shape


def pack(architecture: Architecture, weights: Any, masks: Masks) -> Any:
    """Replaces each masked kernel by "kernel_bits" (uint8) and "kernel_values" (kept weights).

    Args:
        architecture: whose layers the masks are named after.
        weights: parameter tree of the network, NumPy arrays.
        masks: layer name -> logits, positive where the weight is kept.

    Returns:
        A tree like `weights` but for the packed kernels. What the masks hide is not stored.
    """
    packed = jax.tree.map(np.asarray, weights)
    for layer in architecture.kernels:
        if layer.name in masks:
            parameters = layer.of(packed)
            kept = np.asarray(masks[layer.name]) > 0
            kernel = parameters.pop("kernel")
            parameters["kernel_bits"] = np.packbits(kept)
            # One that nobody reads where nothing is kept: orbax saves no empty array.
            parameters["kernel_values"] = kernel[kept] if kept.any() else kernel.ravel()[:1]
    return packed


def unpack(architecture: Architecture, packed: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The inverse of `pack`: weights with zeros where they are pruned, and masks of +1 and -1."""
    weights, masks = jax.tree.map(np.asarray, packed), {}
    for layer in architecture.kernels:
        parameters = layer.of(weights)
        if "kernel_bits" in parameters:
            shape = kernel_shape(layer)
            bits = np.unpackbits(parameters.pop("kernel_bits"), count=int(np.prod(shape)))
            kept = bits.astype(bool).reshape(shape)
            values = parameters.pop("kernel_values")
            parameters["kernel"] = np.zeros(shape, values.dtype)
            parameters["kernel"][kept] = values[: kept.sum()]
            masks[layer.name] = np.where(kept, 1.0, -1.0).astype(np.float32)
    return weights, masks
