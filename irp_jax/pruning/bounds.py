"""The fewest and the most units that each mask may keep: a trust region around uniform pruning.

A score that ranks units does not predict how a layer works once most of its channels are pruned.
Without bounds it may leave two channels in one layer and fifty in another. So the share that a
channel group keeps is within a factor of the uniform share: the one share that meets the same cost
if all groups keep it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.graph import ChannelGraph
from irp_jax.pruning import cost, masks


class Bounds(NamedTuple):
    """Mask name -> fewest and most units kept, as whole numbers or scalars of any array library."""

    least: dict
    most: dict


def around(
    graph: ChannelGraph, granularity: masks.Granularity, kind: cost.Kind, spread: float
) -> Callable[[jax.Array | float], Bounds]:
    """Returns the bounds as a function of the target cost ratio.

    Args:
        graph: the graph of the dense network.
        granularity: what a unit is. Weights have no bounds other than `masks.min_keep`.
        kind: what the budget counts.
        spread: a group may keep at most this many times the uniform share, and at least the uniform
            share divided by it. 0 means no such bounds.

    Returns:
        A function that works under `jax.jit`: cost ratio -> bounds. The lower bounds are never
        below `masks.min_keep`. They never cost more than a budget that `masks.min_keep` can meet.
    """
    min_keep, sizes = masks.min_keep(graph, granularity), masks.units(graph, granularity)
    if not spread or granularity == "weight":
        return lambda ratio: Bounds(dict(min_keep), dict(sizes))

    def at_least(share: jax.Array) -> dict[str, jax.Array]:
        # A rounding error must not turn 3 channels into 4.
        return {n: jnp.maximum(min_keep[n], jnp.ceil(share * sizes[n] - 1e-3)) for n in sizes}

    def highest(goal: jax.Array | float, kept: Callable[[jax.Array], dict]) -> jax.Array:
        def narrow(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            fits = cost.ratio(graph, kind, kept(middle)) <= goal
            return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

        return jax.lax.fori_loop(0, 24, narrow, (jnp.float32(0.0), jnp.float32(1.0)))[0]

    def bounds(goal: jax.Array | float) -> Bounds:
        share = highest(goal, lambda share: {n: share * size for n, size in sizes.items()})
        # If the minimum of some groups is above the uniform share, the others get less.
        lowest = jnp.minimum(share / spread, highest(goal, at_least))
        least = at_least(lowest)
        most = {
            n: jnp.clip(jnp.floor(share * spread * sizes[n] + 1e-3), least[n], sizes[n])
            for n in sizes
        }
        return Bounds(least, most)

    return bounds
