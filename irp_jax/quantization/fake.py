"""Rounds arrays to 8 bits and back: fake quantization (Jacob et al. 2018, section 3).

Activations have one scale and one zero point for an array, and 8 unsigned bits. Weights have a
scale for each output channel, no zero point, and the signed levels -64 to 64. Gradients pass
through the rounding unchanged (the straight-through estimator, Bengio et al. 2013), and are zero
where an activation is outside of its range.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

MAX_LEVEL = 255
"""Largest unsigned 8-bit number."""

LARGEST = 64
"""Largest absolute value of a weight. x86 processors without VNNI add two products of an 8-bit
activation and a weight in 16 bits. 2 * 255 * 64 fits. With weights up to 127 the sums saturate, and
the file then computes something else there."""


def scale_of(low: float, high: float) -> tuple[float, int]:
    """Returns the scale and the zero point for a range. The range is extended to contain zero.

    Zero is always represented exactly, since convolutions pad with it.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / MAX_LEVEL)) or 1.0
    return scale, int(np.clip(round(-low / scale), 0, MAX_LEVEL))


def activations(values: jax.Array, low: float, high: float) -> jax.Array:
    """Rounds activations to 256 levels.

    Args:
        values: any shape, float32.
        low, high: their range. Values outside are clipped.

    Returns:
        The nearest levels, same shape and dtype. Ties go to the even level, as in ONNX.
    """
    scale, zero_point = scale_of(low, high)
    return fake_quantize_p.bind(values, scale=scale, zero_point=zero_point)


def weights(values: jax.Array, channels: Sequence[int]) -> jax.Array:
    """Rounds weights to 129 levels that are symmetric about zero.

    A factor for each output channel, such as that of a batch norm, can be applied before or after:
    the result is the same.

    Args:
        values: a kernel of any shape, float32.
        channels: its axes of output channels. Each channel has its own scale.
    """
    others = [axis for axis in range(values.ndim) if axis not in channels]
    scale = jnp.max(jnp.abs(values), axis=others, keepdims=True) / LARGEST
    scale = jnp.where(scale == 0, jnp.ones_like(scale), scale)
    return values + jax.lax.stop_gradient(jnp.round(values / scale) * scale - values)


# ---- the primitive -----------------------------------------------------------------------------
# It is a primitive, and not a function of other operations, so that the ONNX writer finds it.

fake_quantize_p = Primitive("fake_quantize")
"""(values,) -> values on the nearest levels. Parameters: scale, a float; zero_point, an int."""


@fake_quantize_p.def_impl
def _rounded(values: Any, *, scale: float, zero_point: int) -> jax.Array:
    levels = jnp.clip(jnp.round(values / scale) + zero_point, 0, MAX_LEVEL)
    return (levels - zero_point) * scale


@fake_quantize_p.def_abstract_eval
def _abstract(values: Any, **_: Any) -> Any:
    return values


def _jvp(primals: Any, tangents: Any, *, scale: float, zero_point: int) -> Any:
    (values,), (tangent,) = primals, tangents
    rounded = fake_quantize_p.bind(values, scale=scale, zero_point=zero_point)
    if isinstance(tangent, ad.Zero):
        return rounded, tangent
    low, high = -zero_point * scale, (MAX_LEVEL - zero_point) * scale
    inside = (values >= low) & (values <= high)
    return rounded, jnp.where(inside, tangent, jnp.zeros_like(tangent))


ad.primitive_jvps[fake_quantize_p] = _jvp
mlir.register_lowering(fake_quantize_p, mlir.lower_fun(_rounded, multiple_results=False))
batching.primitive_batchers[fake_quantize_p] = lambda given, axes, **params: (
    fake_quantize_p.bind(*given, **params),
    axes[0],
)
