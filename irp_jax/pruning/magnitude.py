"""Pruning by magnitude: within each group or kernel the largest units stay.

With regularity "weight" a unit's magnitude is the weight's absolute value (Han et al. 2015). With
"channel" it is the L2 norm of every filter that writes the channel, taken together: all layers of
the group have a say, and the selection is the one that changes their kernels least.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax.models import Architecture
from irp_jax.pruning import masks
from irp_jax.pruning.masks import Masks

Parameters = dict[str, dict[str, jax.Array]]
"""Layer name -> parameter name -> array, the last axis being the channels the layer writes."""


def kernels(architecture: Architecture, weights: Any) -> Parameters:
    """All kernels of a parameter tree but that of the logits."""
    return {
        layer.name: {"kernel": layer.of(weights)["kernel"]}
        for layer in masks.maskable(architecture)
    }


def norms(
    architecture: Architecture, parameters: Parameters, regularity: masks.Regularity
) -> Masks:
    """Mask name -> magnitude of each unit, float32, shaped like the mask.

    Args:
        architecture: of the dense network.
        parameters: what is measured: kernels alone with regularity "weight"; with "channel" any
            parameters of layers that write one.
        regularity: what a unit is.
    """
    if regularity == "weight":
        return {name: jnp.abs(arrays["kernel"]) for name, arrays in parameters.items()}
    squares = {name: jnp.zeros((size,), jnp.float32) for name, size in architecture.groups.items()}
    for layer in architecture.layers:
        for array in parameters.get(layer.name, {}).values():
            squares[str(layer.writes)] += jnp.square(array).sum(tuple(range(array.ndim - 1)))
    return {name: jnp.sqrt(total) for name, total in squares.items()}


def largest(scores: Masks, kept: Mapping[str, int]) -> Masks:
    """Logits of +1 for the units of highest score, exactly `kept` of each mask, and -1 for others.

    Of equal scores the first is kept.
    """

    def select(score: jax.Array, count: int) -> jax.Array:
        _, best = jax.lax.top_k(score.ravel(), count)
        return jnp.full(score.size, -1.0, jnp.float32).at[best].set(1.0).reshape(score.shape)

    return {name: select(score, kept[name]) for name, score in scores.items()}
