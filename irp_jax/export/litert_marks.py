"""Marks the rounding of an 8-bit network for the LiteRT converter.

The converter knows rounding by composites of StableHLO with the name `quant.fake_quant`. It makes
integer operators of the layers between them, and applies batch norms to the scales of kernels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from irp_jax.errors import UserError
from irp_jax.graph import Apply
from irp_jax.quantization import Quantization, Rounding, emulated
from irp_jax.quantization.fake import LARGEST, scale_of

SHIFT = 128
"""LiteRT's integers are signed: its zero points are this much smaller than those of
`quantization.fake`."""


def marked(
    network: Apply, quantization: Quantization, variables: Mapping[str, Any]
) -> Callable[[jax.Array], jax.Array]:
    """Returns a function of images that has composites where the emulation rounds.

    Its convolutions are those of the model, and not those of `graph.fast_convolution`. It can be
    traced for a known number of images only: JAX cannot write composites of symbolic sizes.

    Args:
        network: see `quantization.emulated`.
        quantization: of the network.
        variables: {"params", "batch_stats"}, each name -> array.
    """
    function = emulated(network, quantization, Rounding(_activations, _weights))
    arrays = jax.tree.map(np.asarray, dict(variables))

    def apply(images: jax.Array) -> jax.Array:
        return function(arrays["params"], arrays["batch_stats"], images, train=False, fast=False)[0]

    return apply


def _activations(values: Any, low: float, high: float) -> Any:
    scale, zero_point = scale_of(low, high)
    return _composite(
        values,
        scale=np.array([scale], np.float32),
        zero_point=np.array([zero_point - SHIFT], np.int32),
        narrow_range=False,
    )


def _weights(values: Any, channels: tuple[int, ...]) -> Any:
    if isinstance(values, jax.core.Tracer):
        raise UserError(
            "LiteRT stores kernels as 8-bit numbers, and one of the network is computed from other "
            "arrays: use --format=onnx"
        )
    if len(channels) != 1:
        raise UserError(
            f"a kernel of the network has {len(channels)} axes of output channels, and LiteRT "
            f"rounds along one: use --format=onnx"
        )
    others = tuple(axis for axis in range(values.ndim) if axis not in channels)
    largest = np.abs(values).max(others)
    scale = np.where(largest == 0, 1, largest / LARGEST).astype(np.float32)
    return _composite(
        values, scale=scale, zero_point=np.zeros(len(scale), np.int32), narrow_range=True,
        quantization_dimension=np.int32(channels[0]),
    )  # fmt: skip


def _composite(values: Any, **attributes: Any) -> Any:
    # The converter reads the attributes alone, so the body does not matter.
    composite = jax.lax.composite(lambda values, **_: values + 0, "quant.fake_quant")
    return composite(values, dtype="i8", **attributes)
