"""Robust ADMM: adversarial training that is pulled towards a pruned network, then cut to it.

Ye et al. (ICCV 2019, section 3) minimise the adversarial loss subject to every layer's weights W
lying in a set S of tensors with few units. ADMM splits that in two: the weights descend

    loss + rho / 2 ||W - Z + U||^2,

and now and then Z <- the point of S nearest to W + U, then U <- U + W - Z. Z is a copy of the
weights that is pruned, U the running sum of how far the weights are from it. The first Z is the
projection of W, with U = 0.

Filters of coupled layers are one unit here, since they can only be removed together, and one keep
rate serves all layers, whose rates the authors set by hand. rho stays what it is; the authors' code
can also let it grow, to ten times as much in the end. A batch norm behind a convolution undoes what
the pull does to the length of a filter; the authors' code can also pull the scales of the norms.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from irp_jax.models import Architecture
from irp_jax.pruning import magnitude, masks
from irp_jax.pruning.magnitude import Kernels


class AdmmState(NamedTuple):
    """State of `pull`.

    Attributes:
        step: () int32, updates made.
        sparse: Z, like the kernels; zero before ADMM starts.
        dual: U, likewise.
    """

    step: jax.Array
    sparse: Kernels
    dual: Kernels


def project(
    architecture: Architecture,
    kernels: Kernels,
    regularity: masks.Regularity,
    kept: Mapping[str, int],
) -> Kernels:
    """The kernels with all but the largest units set to zero: the nearest point of S.

    Args:
        architecture: of the dense network.
        kernels: layer name -> kernel.
        regularity: what a unit is.
        kept: mask name -> units that may be other than zero.
    """
    logits = magnitude.largest(magnitude.norms(architecture, kernels, regularity), kept)
    gates = masks.gates(logits)
    return {
        layer.name: kernels[layer.name]
        * gates[layer.name if regularity == "weight" else str(layer.writes)]
        for layer in masks.maskable(architecture)
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
        rho: strength of the pull.
        start: step from which ADMM runs; Z and U are made from the weights before it.
        interval: steps between their updates.
    """

    def init(weights: Any) -> AdmmState:
        current = magnitude.kernels(architecture, weights)
        zeros = [jax.tree.map(jnp.zeros_like, current) for _ in range(2)]
        return AdmmState(jnp.zeros((), jnp.int32), *zeros)

    def update(gradients: Any, state: AdmmState, weights: Any = None) -> tuple[Any, AdmmState]:
        current = magnitude.kernels(architecture, weights)

        def renewed() -> tuple[Kernels, Kernels]:
            sum_ = jax.tree.map(jnp.add, current, state.dual)
            sparse = project(architecture, sum_, regularity, kept)
            dual = jax.tree.map(
                lambda s, z: jnp.where(state.step == start, 0.0, s - z), sum_, sparse
            )
            return sparse, dual

        begun = state.step >= start
        due = begun & ((state.step - start) % interval == 0)
        sparse, dual = jax.lax.cond(due, renewed, lambda: (state.sparse, state.dual))
        strength = jnp.where(begun, rho, 0.0)

        def pulled(path: Any, gradient: jax.Array) -> jax.Array:
            *where, leaf = (key.key for key in path)
            name = "/".join(where)
            if leaf != "kernel" or name not in current:
                return gradient
            return gradient + strength * (current[name] - sparse[name] + dual[name])

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
