"""Robust ADMM: adversarial training that is pulled towards a pruned network, then cut to it.

Ye et al. (ICCV 2019, section 3) minimise the adversarial loss subject to every layer's weights W
lying in a set S of tensors with few units. ADMM splits that in two: the weights descend

    loss + rho / 2 ||W - Z + U||^2,

and now and then Z <- the point of S nearest to W + U, then U <- U + W - Z. Z is a copy of the
weights that is pruned, U the running sum of how far the weights are from it. The first Z is the
projection of W, with U = 0. With each later update rho is multiplied by a constant, and in the end
it is ten times what it was, as in the authors' example for CIFAR-10; U is not rescaled with it.

With channels as units W is all that goes with a channel but the kernels that read it: the filters
of coupled layers, which can only be removed together, their biases, and the scales and biases of
its norms. The authors pull the filters or the scales; but a batch norm undoes what is done to the
length of a filter alone, and where the scales alone are pulled the biases remain. One keep rate
serves all layers, whose rates the authors set by hand. Their learning rate begins anew with every
update of Z; that of `training.optimizer` spans the stage.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from irp_jax.graph import ChannelGraph
from irp_jax.pruning import magnitude, masks
from irp_jax.pruning.magnitude import Parameters

GROWN = 1.3**9
"""What rho is multiplied by in the course of ADMM: 1.3 with each of nine updates of U."""


class AdmmState(NamedTuple):
    """State of `pull`.

    Attributes:
        step: () int32, steps taken.
        sparse: Z, like W; zero before ADMM starts.
        dual: U, likewise.
    """

    step: jax.Array
    sparse: Parameters
    dual: Parameters


def pulled(graph: ChannelGraph, params: Parameters, granularity: masks.Granularity) -> Parameters:
    """W: the kernels, with granularity "weight"; what goes with a channel, with "channel"."""
    if granularity == "weight":
        return magnitude.kernels(graph, params)
    return {name: array for name, array in params.items() if graph.owns(name)}


def project(
    graph: ChannelGraph,
    parameters: Parameters,
    granularity: masks.Granularity,
    keep_counts: Mapping[str, int],
) -> Parameters:
    """The parameters with all but the largest units set to zero: the nearest point of S.

    Args:
        graph: of the dense network.
        parameters: W + U.
        granularity: what a unit is.
        keep_counts: mask name -> units that may be other than zero.
    """
    sizes = magnitude.norms(graph, parameters, granularity)
    gates = masks.gates(magnitude.largest(sizes, keep_counts))
    if granularity == "weight":
        return {name: array * gates[name] for name, array in parameters.items()}

    def pruned(name: str, array: jax.Array) -> jax.Array:
        for axis in graph.owns(name):
            gate = graph.params[name][axis].gate(gates)
            array = array * jnp.expand_dims(gate, [i for i in range(array.ndim) if i != axis])
        return array

    return {name: pruned(name, array) for name, array in parameters.items()}


def pull(
    graph: ChannelGraph,
    granularity: masks.Granularity,
    keep_counts: Mapping[str, int],
    *,
    rho: float,
    start: int,
    stop: int,
    updates: int,
) -> optax.GradientTransformation:
    """Adds the gradient of rho / 2 ||W - Z + U||^2 to that of the weights, and keeps Z and U.

    It stands before the optimiser, so momentum applies to both. Nothing is added before `start`.

    Args:
        graph: of the dense network.
        granularity: what a unit is.
        keep_counts: mask name -> units kept in Z.
        rho: strength of the pull at first; in the end it is `GROWN` times as much.
        start: step from which ADMM runs; Z and U are made from the weights before it.
        stop: step before which it ends.
        updates: how often Z is chosen, at most.
    """
    interval = math.ceil((stop - start) / updates)
    chosen = math.ceil((stop - start) / interval)
    growth = GROWN ** (1 / max(1, chosen - 1))

    def init(weights: Any) -> AdmmState:
        current = pulled(graph, weights, granularity)
        zeros = [jax.tree.map(jnp.zeros_like, current) for _ in range(2)]
        return AdmmState(jnp.zeros((), jnp.int32), *zeros)

    def update(gradients: Any, state: AdmmState, weights: Any = None) -> tuple[Any, AdmmState]:
        current = pulled(graph, weights, granularity)

        def renewed() -> tuple[Parameters, Parameters]:
            sum_ = jax.tree.map(jnp.add, current, state.dual)
            sparse = project(graph, sum_, granularity, keep_counts)
            dual = jax.tree.map(
                lambda s, z: jnp.where(state.step == start, 0.0, s - z), sum_, sparse
            )
            return sparse, dual

        begun = state.step >= start
        grown, since = jnp.divmod(state.step - start, interval)
        due = begun & (since == 0)
        sparse, dual = jax.lax.cond(due, renewed, lambda: (state.sparse, state.dual))
        strength = jnp.where(begun, rho * growth ** grown.astype(jnp.float32), 0.0)

        pulls = {name: strength * (current[name] - sparse[name] + dual[name]) for name in current}
        gradients = {
            name: gradient + pulls[name] if name in pulls else gradient
            for name, gradient in gradients.items()
        }
        return gradients, AdmmState(state.step + 1, sparse, dual)

    return optax.GradientTransformation(init, update)


def dropped(state: Any) -> Any:
    """An optimiser's state with that of `pull` replaced by that of `optax.identity`."""

    def is_admm(part: Any) -> bool:
        return isinstance(part, AdmmState)

    return jax.tree.map(
        lambda part: optax.EmptyState() if is_admm(part) else part, state, is_leaf=is_admm
    )
