"""Robust ADMM: adversarial training that is pulled towards a pruned network, then cut to it.

Ye et al. (ICCV 2019, section 3) minimise the adversarial loss subject to every layer's weights W
lying in a set S of tensors with few units. ADMM splits that in two: the weights descend

    loss + rho / 2 ||W - Z + U||^2,

and now and then Z <- the point of S nearest to W + U, then U <- U + W - Z. Z is a copy of the
weights that is pruned, U the running sum of how far the weights are from it. The first Z is the
projection of W, with U = 0. With each later update rho grows by 1.3, as the authors' code does in
its example for CIFAR-10.

With channels as units W is all that writes a channel: its filters in coupled layers, which can only
be removed together, and the scales and biases of its norms. The authors pull the filters or the
scales; but a batch norm undoes what is done to the length of a filter alone, and where the scales
alone are pulled the biases remain. One keep rate serves all layers, whose rates the authors set by
hand.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from irp_jax.models import Architecture
from irp_jax.pruning import magnitude, masks
from irp_jax.pruning.masks import Masks

GROWTH = 1.3
"""What rho is multiplied by with every update: ten times as much after nine."""

Units = dict[str, dict[str, jax.Array]]
"""W: layer name -> parameter name -> array, of the layers that can be pruned."""


class AdmmState(NamedTuple):
    """State of `pull`.

    Attributes:
        step: () int32, updates made.
        sparse: Z, like W; zero before ADMM starts.
        dual: U, likewise.
    """

    step: jax.Array
    sparse: Units
    dual: Units


def units(architecture: Architecture, weights: Any, regularity: masks.Regularity) -> Units:
    """W: the kernels, with regularity "weight"; all that writes channels, with "channel"."""
    if regularity == "weight":
        kernels = magnitude.kernels(architecture, weights)
        return {name: {"kernel": kernel} for name, kernel in kernels.items()}
    writers = [layer for layer in architecture.layers if layer.writes is not None]
    return {layer.name: dict(layer.of(weights)) for layer in writers}


def select(
    architecture: Architecture,
    units: Units,
    regularity: masks.Regularity,
    kept: Mapping[str, int],
) -> Masks:
    """Logits of +1 for the units of largest L2 norm and -1 for others.

    Args:
        architecture: of the dense network.
        units: W, or W + U.
        regularity: what a unit is.
        kept: mask name -> units kept.
    """
    if regularity == "weight":
        sizes = {name: jnp.abs(arrays["kernel"]) for name, arrays in units.items()}
        return magnitude.largest(sizes, kept)
    squares = {name: jnp.zeros((size,), jnp.float32) for name, size in architecture.groups.items()}
    for layer in architecture.layers:
        for array in units.get(layer.name, {}).values():
            squares[str(layer.writes)] += jnp.square(array).sum(tuple(range(array.ndim - 1)))
    return magnitude.largest(squares, kept)


def project(
    architecture: Architecture,
    units: Units,
    regularity: masks.Regularity,
    kept: Mapping[str, int],
) -> Units:
    """W with all but the largest units set to zero: the nearest point of S. Arguments: `select`."""
    gates = masks.gates(select(architecture, units, regularity, kept))
    return {
        layer.name: {
            name: array * gates[layer.name if regularity == "weight" else str(layer.writes)]
            for name, array in units[layer.name].items()
        }
        for layer in architecture.layers
        if layer.name in units
    }


def pull(
    architecture: Architecture,
    regularity: masks.Regularity,
    kept: Mapping[str, int],
    *,
    rho: float,
    start: int,
    interval: int,
) -> optax.GradientTransformation:
    """Adds the gradient of rho / 2 ||W - Z + U||^2 to that of the weights, and keeps Z and U.

    It stands before the optimiser, so momentum applies to both. Nothing is added before `start`.

    Args:
        architecture: of the dense network.
        regularity: what a unit is.
        kept: mask name -> units kept in Z.
        rho: strength of the pull at first; `GROWTH` times as much after each update of Z and U.
        start: step from which ADMM runs; Z and U are made from the weights before it.
        interval: steps between their updates.
    """

    def init(weights: Any) -> AdmmState:
        current = units(architecture, weights, regularity)
        zeros = [jax.tree.map(jnp.zeros_like, current) for _ in range(2)]
        return AdmmState(jnp.zeros((), jnp.int32), *zeros)

    def update(gradients: Any, state: AdmmState, weights: Any = None) -> tuple[Any, AdmmState]:
        current = units(architecture, weights, regularity)

        def renewed() -> tuple[Units, Units]:
            sum_ = jax.tree.map(jnp.add, current, state.dual)
            sparse = project(architecture, sum_, regularity, kept)
            dual = jax.tree.map(
                lambda s, z: jnp.where(state.step == start, 0.0, s - z), sum_, sparse
            )
            return sparse, dual

        begun = state.step >= start
        updates, since = jnp.divmod(state.step - start, interval)
        due = begun & (since == 0)
        sparse, dual = jax.lax.cond(due, renewed, lambda: (state.sparse, state.dual))
        strength = jnp.where(begun, rho * GROWTH ** updates.astype(jnp.float32), 0.0)

        def pulled(path: Any, gradient: jax.Array) -> jax.Array:
            *where, leaf = (key.key for key in path)
            name = "/".join(where)
            if leaf not in current.get(name, {}):
                return gradient
            return gradient + strength * (
                current[name][leaf] - sparse[name][leaf] + dual[name][leaf]
            )

        gradients = jax.tree_util.tree_map_with_path(pulled, gradients)
        return gradients, AdmmState(state.step + 1, sparse, dual)

    return optax.GradientTransformation(init, update)


def dropped(state: Any) -> Any:
    """An optimiser's state with that of `pull` replaced by that of `optax.identity`."""

    def is_admm(part: Any) -> bool:
        return isinstance(part, AdmmState)

    return jax.tree.map(
        lambda part: optax.EmptyState() if is_admm(part) else part, state, is_leaf=is_admm
    )
