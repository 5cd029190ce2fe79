"""Robust ADMM: adversarial training with a penalty on the distance to a pruned network.

Ye et al. (ICCV 2019, section 3) minimise the adversarial loss subject to a constraint: every
layer's weights W lie in a set S of tensors with few nonzero units. ADMM alternates two steps. The
weights descend

    loss + rho / 2 ||W - Z + U||^2.

At intervals Z becomes the point of S nearest to W + U, and then U <- U + W - Z. Z is a pruned copy
of the weights. U is the running sum of W - Z. The first Z is the projection of W, and U = 0 with
it. Each later update multiplies rho by a constant. The final rho is about ten times the first, as
in the authors' example for CIFAR-10. U is not rescaled.

If units are channels, W is all that belongs to a channel, except the kernels that read it: the
filters of coupled layers, which can only be removed together, their biases, and the scales and
biases of its norms. There are three differences from the authors' method:

- The authors pull the filters or the scales. But a batch norm cancels a change of a filter's length
  alone, and a pull on the scales alone leaves the biases.
- All layers have one keep rate. The authors set a rate for each layer by hand.
- The learning rate of `training.optimizer` has one schedule for the stage. The authors restart
  theirs with every update of Z.
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
"""The final rho over the first: a factor of 1.3 for each of nine updates of U."""


class AdmmState(NamedTuple):
    """State of `pull`.

    Attributes:
        step: () int32, number of steps taken.
        sparse: Z, with the shapes of W; zero before ADMM starts.
        dual: U, with the shapes of W; zero before ADMM starts.
    """

    step: jax.Array
    sparse: Parameters
    dual: Parameters


def pulled(graph: ChannelGraph, params: Parameters, granularity: masks.Granularity) -> Parameters:
    """Returns W: all kernels (granularity "weight"), or arrays that hold channels ("channel")."""
    if granularity == "weight":
        return magnitude.kernels(graph, params)
    return {name: array for name, array in params.items() if graph.owns(name)}


def nearest_sparse(
    graph: ChannelGraph,
    parameters: Parameters,
    granularity: masks.Granularity,
    keep_counts: Mapping[str, int],
) -> Parameters:
    """Returns the nearest point of S: sets all units to zero except the largest.

    Args:
        graph: the graph of the dense network.
        parameters: W + U.
        granularity: what a unit is.
        keep_counts: mask name -> number of units that may be nonzero.
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
    """Adds the gradient of rho / 2 ||W - Z + U||^2 to that of the weights, and maintains Z and U.

    It is chained before the optimiser, so momentum applies to both gradients. Nothing is added
    before `start`.

    Args:
        graph: the graph of the dense network.
        granularity: what a unit is.
        keep_counts: mask name -> number of units kept in Z.
        rho: initial strength of the pull; the final strength is `GROWN` times as large.
        start: first step of ADMM; the first Z is computed from the weights before this step.
        stop: first step after ADMM.
        updates: greatest number of updates of Z.
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
            sparse = nearest_sparse(graph, sum_, granularity, keep_counts)
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
    """Returns an optimiser's state with that of `pull` replaced by that of `optax.identity`."""

    def is_admm(part: Any) -> bool:
        return isinstance(part, AdmmState)

    return jax.tree.map(
        lambda part: optax.EmptyState() if is_admm(part) else part, state, is_leaf=is_admm
    )
