"""Pruning by magnitude: within each group or kernel the largest units stay.

With granularity "weight" a unit's magnitude is the weight's absolute value (Han et al. 2015). With
"channel" it is the L2 norm of every filter that writes the channel, taken together: all layers of
the group have a say, and the selection is the one that changes their kernels least.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from irp_jax.graph import ChannelGraph
from irp_jax.pruning import masks
from irp_jax.pruning.masks import Masks

Parameters = dict[str, jax.Array]
"""Name -> array."""


def kernels(graph: ChannelGraph, params: Parameters) -> Parameters:
    """The kernels among a network's arrays, but that of the logits."""
    return {name: params[name] for name in graph.kernels}


def norms(graph: ChannelGraph, parameters: Parameters, granularity: masks.Granularity) -> Masks:
    """Mask name -> magnitude of each unit, float32, shaped like the mask.

    Args:
        graph: of the dense network.
        parameters: what is measured: kernels alone with granularity "weight"; with "channel" any
            arrays that go with channels.
        granularity: what a unit is.
    """
    if granularity == "weight":
        return {name: jnp.abs(array) for name, array in parameters.items()}
    squares = {name: jnp.zeros((size,), jnp.float32) for name, size in graph.groups.items()}
    for name, array in parameters.items():
        for axis in graph.owns(name):
            others = tuple(i for i in range(array.ndim) if i != axis)
            sums = jnp.square(array).sum(others)
            for group, values in graph.params[name][axis].gather(sums).items():
                squares[group] += values
    return {name: jnp.sqrt(total) for name, total in squares.items()}


def largest(scores: Masks, keep_counts: Mapping[str, int]) -> Masks:
    """Logits of +1 for the units of highest score, `keep_counts` of each mask, and -1 for others.

    Of equal scores the first is kept.
    """

    def select(score: jax.Array, count: int) -> jax.Array:
        _, best = jax.lax.top_k(score.ravel(), count)
        return jnp.full(score.size, -1.0, jnp.float32).at[best].set(1.0).reshape(score.shape)

    return {name: select(score, keep_counts[name]) for name, score in scores.items()}
