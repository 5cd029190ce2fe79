"""Pruning by magnitude: keeps the largest units of each group or kernel.

With granularity "weight" a unit's magnitude is the weight's absolute value (Han et al. 2015). With
"channel" it is the joint L2 norm of all filters that write the channel. So all layers of the group
count, and the selection changes their kernels least.
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
    """Returns the kernels among a network's arrays, except that of the logits."""
    return {name: params[name] for name in graph.kernels}


def norms(graph: ChannelGraph, parameters: Parameters, granularity: masks.Granularity) -> Masks:
    """Returns mask name -> magnitude of each unit, float32, with the shape of the mask.

    Args:
        graph: the graph of the dense network.
        parameters: the arrays to measure: kernels only with granularity "weight"; with "channel"
            any arrays, of which the axes in `ChannelGraph.owns` count.
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
    """Returns logits of +1 for the `keep_counts` highest scores of each mask, and -1 for others.

    Among equal scores the first ones are kept.
    """

    def select(score: jax.Array, count: int) -> jax.Array:
        _, best = jax.lax.top_k(score.ravel(), count)
        return jnp.full(score.size, -1.0, jnp.float32).at[best].set(1.0).reshape(score.shape)

    return {name: select(score, keep_counts[name]) for name, score in scores.items()}
