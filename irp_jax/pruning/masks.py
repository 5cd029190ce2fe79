"""Pruning masks: one logit per channel or per weight; a unit is kept while its logit is positive.

Masks are dictionaries: mask name -> logits. With granularity "channel" there is one mask for each
channel group, of shape (channels,). With "weight" there is one for each kernel, with its name and
shape.
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
    """Returns mask name -> number of its units."""
    if granularity == "channel":
        return dict(graph.groups)
    return {name: math.prod(kernel_shape(graph, name)) for name in graph.kernels}


def min_keep(graph: ChannelGraph, granularity: Granularity) -> dict[str, int]:
    """Returns mask name -> minimum number of kept units, so that no layer loses all its units.

    For a channel group this is a sixteenth of its channels. For a kernel it is the number of its
    input and output channels together, but at most an eighth of its weights. The kept weights may
    be anywhere in the kernel. The minimum is at least one.
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
    """Returns logits that keep all units."""
    if granularity == "channel":
        shapes: dict[str, Any] = {name: (size,) for name, size in graph.groups.items()}
    else:
        shapes = {name: kernel_shape(graph, name) for name in graph.kernels}
    return {name: jnp.full(shape, START, jnp.float32) for name, shape in shapes.items()}


def kernel_shape(graph: ChannelGraph, name: str) -> tuple[int, ...]:
    """Returns the shape of a trained array in the dense network."""
    return tuple(extent.size for extent in graph.params[name])


@jax.custom_jvp
def binarise(logits: jax.Array) -> jax.Array:
    """Returns 1 where the soft mask 0.5 tanh(M) + 0.5 rounds to 1 (M > 0), else 0.

    Logits M are float32 of any shape. The gradient is that of the soft mask, 0.5 (1 - tanh(M)^2):
    a straight-through estimator of the rounding (Bengio et al. 2013; Vemparala et al. 2021, section
    3).
    """
    return (logits > 0).astype(logits.dtype)


@binarise.defjvp
def _binarise_jvp(primals, tangents):
    (logits,), (tangent,) = primals, tangents
    return binarise(logits), slope(logits) * tangent


def slope(logits: jax.Array) -> jax.Array:
    """Returns the soft mask's derivative, 0.5 (1 - tanh(M)^2), in a form exact for large logits."""
    return 2.0 * jax.nn.sigmoid(2.0 * logits) * jax.nn.sigmoid(-2.0 * logits)


def gates(masks: Masks) -> Masks:
    """Returns every mask binarised."""
    return {name: binarise(logits) for name, logits in masks.items()}


def keep_counts(gates: Masks) -> dict[str, jax.Array]:
    """Returns mask name -> number of units kept, () float32."""
    return {name: gate.sum() for name, gate in gates.items()}


def apply(graph: ChannelGraph, params: dict[str, Any], gates: Masks) -> dict[str, Any]:
    """Returns the network's arrays with masked weights set to zero.

    For a channel these are the weights that read it. That is enough: the channel is still computed,
    but no layer uses it. The gradient of its gate then measures what the channel would contribute
    if it were restored.

    Args:
        graph: the graph of the dense network.
        params: name -> trained array.
        gates: binarised masks, by group or by kernel; missing groups and kernels are not masked.
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
