"""The state of training: its initial value, its compaction at the freeze, and weight averaging."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irp_jax.config import Config
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import admm, compaction, masks, uniform
from irp_jax.training import optimizer
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import Plan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Arrays that change in every step.

    Attributes:
        step: () int32, steps taken since the start of the run.
        params: {"weights": name -> array of the network, "masks": mask name -> logits}.
        batch_stats: name -> array, other variables of the network: running statistics of its norms.
        optimizer: state of the optax optimiser.
        average: {"weights", "batch_stats"}, their moving average; None without one.
        memory: the defense's memory of every training image; None without one.
    """

    step: jax.Array | np.ndarray
    params: dict[str, Any]
    batch_stats: Any
    optimizer: Any
    average: Any = None
    memory: Any = None

    @property
    def network(self) -> dict[str, Any]:
        """{"weights", "masks", "batch_stats"} of the network to use: the average, if any."""
        live = {"weights": self.params["weights"], "batch_stats": self.batch_stats}
        return {**(self.average or live), "masks": self.params["masks"]}


def initial_state(config: Config, plan: Plan, graph: ChannelGraph, variables: Any) -> TrainState:
    """Returns the state before the first step.

    Args:
        config, plan: of the run.
        graph: of the dense network.
        variables: the network's initial {"params", "batch_stats"}, each name -> array.
    """
    logits = METHODS[config.method].initial_masks(graph, config.granularity)
    params = {"weights": variables["params"], "masks": logits}
    state = optimizer.build(config, plan, graph, frozen=False).init(params)
    batch_stats = variables.get("batch_stats", {})
    average = {"weights": variables["params"], "batch_stats": batch_stats} if config.ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, state, average)


def freeze(
    config: Config,
    plan: Plan,
    graph: ChannelGraph,
    state: TrainState,
    fresh: dict[str, Any] | None = None,
) -> tuple[TrainState, dict[str, int]]:
    """Freezes the masks as the method decides, and removes what they prune.

    With channel granularity the result has smaller arrays and no masks. With weight granularity it
    has masks of +-1, and pruned weights are zero.

    Args:
        config, plan: of the run.
        graph: of the dense network.
        state: on the host or a device.
        fresh: {"params", "batch_stats"} of an untrained dense network, from which the compact one
            starts (channels); None to keep the learned weights.

    Returns:
        The state to continue from, on the host, and mask name -> units kept.
    """
    granularity, method = config.granularity, METHODS[config.method]
    state = jax.device_get(state)
    logits = method.final_masks(config, plan, graph, state.params)
    gates = masks.gates(logits)
    average = state.average
    if average is not None:
        average = {**average, "weights": masks.apply(graph, average["weights"], gates)}
    trees = {
        "weights": state.params["weights"],
        "momentum": admm.dropped(state.optimizer.inner_states["weights"]),
    }
    # Pruned weights and their momentum are zero from now on, so they stay zero.
    trees["weights"] = masks.apply(graph, trees["weights"], gates)
    hidden = masks.apply(graph, optax.tree_utils.tree_get(trees["momentum"], "trace"), gates)
    trees["momentum"] = optax.tree_utils.tree_set(trees["momentum"], trace=hidden)
    batch_stats, frozen_logits = state.batch_stats, logits
    if fresh is not None:
        trees = {
            "weights": fresh["params"],
            "momentum": jax.tree.map(_zero_momentum, trees["momentum"]),
        }
        batch_stats = fresh["batch_stats"]
        if average is not None:
            average = {"weights": fresh["params"], "batch_stats": batch_stats}
    if granularity == "channel":
        keep_indices = compaction.keep_indices(logits)
        trees, batch_stats, average = compaction.compact_params(
            graph, (trees, batch_stats, average), keep_indices
        )
        frozen_logits = {}
        keep_counts = {name: len(indices) for name, indices in keep_indices.items()}
        after = uniform.rescale if fresh is not None else method.after_cut
        trees["weights"] = after(graph, trees["weights"], keep_counts)
        if average is not None:
            average = {**average, "weights": after(graph, average["weights"], keep_counts)}
    else:
        keep_counts = {name: int((logit > 0).sum()) for name, logit in logits.items()}
    params = {"weights": trees["weights"], "masks": frozen_logits}
    # Frozen masks have no optimiser state, so the structure of a new state is enough.
    example = jax.eval_shape(optimizer.build(config, plan, graph, frozen=True).init, params)
    inner = {**example.inner_states, "weights": trees["momentum"]}
    frozen = dataclasses.replace(
        state, params=params, batch_stats=batch_stats, average=average,
        optimizer=example._replace(inner_states=inner),
    )  # fmt: skip
    return jax.device_get(frozen), keep_counts


def _zero_momentum(leaf: Any) -> Any:
    """Returns zero for momentum. Counters keep their values."""
    return np.zeros_like(leaf) if np.issubdtype(np.asarray(leaf).dtype, np.floating) else leaf


def example_state(
    config: Config, plan: Plan, graph: ChannelGraph, network: dict[str, Any], frozen: bool
) -> TrainState:
    """Returns a state with the structure and the shapes to restore the rest of a checkpoint into.

    Its network is the restored one. The defense's memory is left out.
    """
    params = {"weights": network["weights"], "masks": network["masks"]}
    state = jax.eval_shape(optimizer.build(config, plan, graph, frozen).init, params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    average = {name: network[name] for name in ("weights", "batch_stats")} if config.ema else None
    return TrainState(np.zeros((), np.int32), params, network["batch_stats"], zeros, average)


def update_average(average: Any, latest: Any, step: Any, decay: float) -> Any:
    """Returns the exponential moving average after one more step (Polyak & Juditsky 1992).

    The batch statistics are averaged with the weights. They are not estimated again. The reason: to
    first order in the change of the weights within the window of 1 / (1 - decay) steps, the
    statistics of averaged weights are the average of the statistics. Running statistics are
    themselves an average over about ten steps and rely on the same argument. An estimate would need
    a pass over adversarial images at every probe, and the attacks would need the statistics first.

    Args:
        average: pytree of arrays, the average so far; None for none.
        latest: the same structure, the values after the step.
        step: () int32, steps taken before this one.
        decay: in [0, 1). The first steps use (1 + step) / (10 + step) if that is smaller, so that
            the average soon leaves the initial weights.
    """
    if average is None:
        return None
    count = step.astype(jnp.float32)
    keep = jnp.minimum(jnp.float32(decay), (1.0 + count) / (10.0 + count))

    def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
        # Integers, such as a network's step counters, are not averaged.
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        wide = keep * old.astype(jnp.float32) + (1.0 - keep) * new.astype(jnp.float32)
        return wide.astype(old.dtype)

    return jax.tree.map(averaged, average, latest)
