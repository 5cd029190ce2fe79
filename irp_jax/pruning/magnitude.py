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

Kernels = dict[str, jax.Array]
"""Layer name -> kernel (k, k, C_in, C_out) or (C_in, C_out), of the layers that can be pruned."""


def kernels(architecture: Architecture, weights: Any) -> Kernels:
    """All kernels of a parameter tree but that of the logits."""
    return {layer.name: layer.of(weights)["kernel"] for layer in masks.maskable(architecture)}


def norms(architecture: Architecture, kernels: Kernels, regularity: masks.Regularity) -> Masks:
    """Mask name -> magnitude of each unit, float32, shaped like the mask."""
    if regularity == "weight":
        return {name: jnp.abs(kernel) for name, kernel in kernels.items()}
    squares = {name: jnp.zeros((size,), jnp.float32) for name, size in architecture.groups.items()}
    for layer in masks.maskable(architecture):
        assert layer.writes is not None
        kernel = kernels[layer.name]
        squares[layer.writes] += jnp.square(kernel).sum(tuple(range(kernel.ndim - 1)))
    return {name: jnp.sqrt(total) for name, total in squares.items()}


def largest(scores: Masks, kept: Mapping[str, int]) -> Masks:
    """Logits of +1 for the units of highest score, exactly `kept` of each mask, and -1 for others.

    Of equal scores the first is kept.
    """

    def select(score: jax.Array, count: int) -> jax.Array:
        _, best = jax.lax.top_k(score.ravel(), count)
        return jnp.full(score.size, -1.0, jnp.float32).at[best].set(1.0).reshape(score.shape)

    return {name: select(score, kept[name]) for name, score in scores.items()}
