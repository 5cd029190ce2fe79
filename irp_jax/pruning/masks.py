"""Prune masks: one logit per channel or per weight; a unit is kept while its logit is positive.

Masks are plain dictionaries from a mask's name to its logits. With granularity "channel" there is
one mask per channel group, shape (channels,); with "weight" one per kernel, of its name and shape.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from irp_jax.graph import ChannelGraph

Granularity = Literal["channel", "weight"]
Masks = dict[str, jax.Array]

START = 1.0
"""Initial logit: every unit is kept, with a soft value of 0.88."""


def units(graph: ChannelGraph, granularity: Granularity) -> dict[str, int]:
    """Mask name -> how many units it decides about."""
    if granularity == "channel":
        return dict(graph.groups)
    return {name: math.prod(kernel_shape(graph, name)) for name in graph.kernels}


def min_keep(graph: ChannelGraph, granularity: Granularity) -> dict[str, int]:
    """Mask name -> how many of its units always stay, so that no layer can die.

    A sixteenth of a channel group. Of a kernel as many weights as it reads and writes channels,
    wherever they lie, but no more than an eighth of it. At least one.
    """
    if granularity == "channel":
        return {name: max(1, size // 16) for name, size in graph.groups.items()}
    channels: dict[str, int] = {}
    for layer in graph.layers:
        if layer.kernel is not None:
            channels.setdefault(layer.kernel, sum(layer.channels({})))
    return {
        name: max(1, min(size // 8, channels[name]))
        for name, size in units(graph, granularity).items()
    }


def init(graph: ChannelGraph, granularity: Granularity) -> Masks:
    """Logits that keep everything."""
    if granularity == "channel":
        shapes: dict[str, Any] = {name: (size,) for name, size in graph.groups.items()}
    else:
        shapes = {name: kernel_shape(graph, name) for name in graph.kernels}
    return {name: jnp.full(shape, START, jnp.float32) for name, shape in shapes.items()}


def kernel_shape(graph: ChannelGraph, name: str) -> tuple[int, ...]:
    """The shape of a trained array in the dense network."""
    return tuple(extent.size for extent in graph.params[name])


@jax.custom_jvp
def binarise(logits: jax.Array) -> jax.Array:
    """1 where the soft mask 0.5 tanh(M) + 0.5 rounds up (M > 0), else 0; float32, any shape.

    The gradient passes the rounding straight through (Bengio et al. 2013), so it is that of the
    soft mask: 0.5 (1 - tanh(M)^2) (Vemparala et al. 2021, section 3).
    """
    return (logits > 0).astype(logits.dtype)


@binarise.defjvp
def _binarise_jvp(primals, tangents):
    (logits,), (tangent,) = primals, tangents
    return binarise(logits), slope(logits) * tangent


def slope(logits: jax.Array) -> jax.Array:
    """Derivative of the soft mask, 0.5 (1 - tanh(M)^2), in a form exact for large logits too."""
    return 2.0 * jax.nn.sigmoid(2.0 * logits) * jax.nn.sigmoid(-2.0 * logits)


def gates(masks: Masks) -> Masks:
    """Every mask binarised."""
    return {name: binarise(logits) for name, logits in masks.items()}


def keep_counts(gates: Masks) -> dict[str, jax.Array]:
    """Mask name -> number of units kept, () float32."""
    return {name: gate.sum() for name, gate in gates.items()}


def apply(graph: ChannelGraph, params: dict[str, Any], gates: Masks) -> dict[str, Any]:
    """The network's arrays with everything that is masked out set to zero.

    Masking the kernels that read a channel is enough: nobody sees a pruned channel, whatever the
    layer before still computes. Its mask gradient then says what the channel would contribute if it
    came back.

    Args:
        graph: of the dense network.
        params: name -> trained array.
        gates: binarised masks, by group or by kernel; what is missing is not masked.
    """
    masked = dict(params)
    for name in graph.kernels:
        if name in gates:
            masked[name] = masked[name] * gates[name].astype(masked[name].dtype)
    for name, along in graph.reads.items():
        for axis in along:
            extent = graph.params[name][axis]
            if any(group in gates for group in extent.groups):
                gate = extent.gate(gates).astype(masked[name].dtype)
                masked[name] = masked[name] * jnp.expand_dims(
                    gate, [i for i in range(masked[name].ndim) if i != axis]
                )
    return masked
