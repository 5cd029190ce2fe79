"""How few and how many units each mask may keep: a trust region round uniform pruning.

A score that ranks units says little of what a layer does when most of its channels are gone. Left
to itself it may leave two channels in one layer beside fifty in another. So the share that a
channel group keeps stays within a factor of the share that all groups would keep at the same cost.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.graph import ChannelGraph
from irp_jax.pruning import cost, masks


class Bounds(NamedTuple):
    """Mask name -> the fewest units kept, and the most; whole numbers or scalars of any library."""

    least: dict
    most: dict


def around(
    graph: ChannelGraph, granularity: masks.Granularity, kind: cost.Kind, spread: float
) -> Callable[[jax.Array | float], Bounds]:
    """The bounds as a function of the cost ratio to meet.

    Args:
        graph: of the dense network.
        granularity: what a unit is. Only channels have bounds besides `masks.min_keep`.
        kind: what the budget counts.
        spread: how many times the uniform share a group may keep at most, and what part of it at
            least; 0 is any.

    Returns:
        A function, safe under `jax.jit`: cost ratio -> bounds. `masks.min_keep` holds in any
        case, and the bounds never cost more than a budget that it can meet.
    """
    min_keep, sizes = masks.min_keep(graph, granularity), masks.units(graph, granularity)
    if not spread or granularity == "weight":
        return lambda ratio: Bounds(dict(min_keep), dict(sizes))

    def at_least(share: jax.Array) -> dict[str, jax.Array]:
        # A rounding error must not make of 3 channels 4.
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
        # Where the minimum of some groups is above the uniform share, the others get less.
        lowest = jnp.minimum(share / spread, highest(goal, at_least))
        least = at_least(lowest)
        most = {
            n: jnp.clip(jnp.floor(share * spread * sizes[n] + 1e-3), least[n], sizes[n])
            for n in sizes
        }
        return Bounds(least, most)

    return bounds
