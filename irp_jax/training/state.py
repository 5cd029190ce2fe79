"""The state of training: made, carried from step to step, frozen and compacted."""

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
    """What training carries from step to step.

    Attributes:
        step: () int32, steps taken since the start of the run.
        params: {"weights": name -> array of the network, "masks": mask name -> logits}.
        batch_stats: name -> array, what else the network carries: running statistics of its norms.
        optimizer: state of the optax optimiser.
        average: {"weights", "batch_stats"}, their moving average; None where none is kept.
        memory: what the defense remembers of every training image; None where that is nothing.
    """

    step: jax.Array | np.ndarray
    params: dict[str, Any]
    batch_stats: Any
    optimizer: Any
    average: Any = None
    memory: Any = None

    @property
    def network(self) -> dict[str, Any]:
        """{"weights", "masks", "batch_stats"} of the network that is put to use."""
        live = {"weights": self.params["weights"], "batch_stats": self.batch_stats}
        return {**(self.average or live), "masks": self.params["masks"]}


def initial_state(config: Config, plan: Plan, graph: ChannelGraph, variables: Any) -> TrainState:
    """The state before the first step.

    Args:
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
    """Fixes the masks, as the method will have them, and cuts the network down to what is kept.

    With channel granularity the result has no masks but smaller arrays; with weight granularity it
    has masks of +-1 and zeros behind them.

    Args:
        graph: of the dense network.
        state: on the host or a device.
        fresh: {"params", "batch_stats"} of a network that has not been trained, which the small one
            starts from (channels); None to go on with what was learned.

    Returns:
        The state to go on from, on the host, and mask name -> units kept.
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
    # What is hidden is zero from here on, and so is its momentum: it stays zero.
    trees["weights"] = masks.apply(graph, trees["weights"], gates)
    hidden = masks.apply(graph, optax.tree_utils.tree_get(trees["momentum"], "trace"), gates)
    trees["momentum"] = optax.tree_utils.tree_set(trees["momentum"], trace=hidden)
    batch_stats, frozen_logits = state.batch_stats, logits
    if fresh is not None:
        trees = {
            "weights": fresh["params"],
            "momentum": jax.tree.map(_nothing, trees["momentum"]),
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
    # Frozen masks have no optimiser state, so its structure is all that is needed of a new one.
    example = jax.eval_shape(optimizer.build(config, plan, graph, frozen=True).init, params)
    inner = {**example.inner_states, "weights": trees["momentum"]}
    frozen = dataclasses.replace(
        state, params=params, batch_stats=batch_stats, average=average,
        optimizer=example._replace(inner_states=inner),
    )  # fmt: skip
    return jax.device_get(frozen), keep_counts


def _nothing(leaf: Any) -> Any:
    """Momentum of nothing; what is counted goes on."""
    return np.zeros_like(leaf) if np.issubdtype(np.asarray(leaf).dtype, np.floating) else leaf


def example_state(
    config: Config, plan: Plan, graph: ChannelGraph, network: dict[str, Any], frozen: bool
) -> TrainState:
    """A state of the right structure and shapes around a restored network, to restore the rest.

    What the defense remembers is left out.
    """
    params = {"weights": network["weights"], "masks": network["masks"]}
    state = jax.eval_shape(optimizer.build(config, plan, graph, frozen).init, params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    average = {name: network[name] for name in ("weights", "batch_stats")} if config.ema else None
    return TrainState(np.zeros((), np.int32), params, network["batch_stats"], zeros, average)


def update_average(average: Any, latest: Any, step: Any, decay: float) -> Any:
    """The exponential moving average after one more step (Polyak & Juditsky 1992; decay as usual).

    The batch statistics are averaged with the weights, not estimated anew. To first order in how
    far the weights move within the window, of 1 / (1 - decay) steps, the statistics of averaged
    weights are the average of the statistics, and the running statistics, themselves an average
    over ten steps, are used on that ground already. Estimating them would take a pass over
    adversarial images at every probe, and their attacks would need the statistics to begin with.

    Args:
        average: pytree of arrays, the average so far; None for none.
        latest: the same structure, as it is after the step.
        step: () int32, steps taken before this one.
        decay: in [0, 1). The first steps forget faster, (1 + step) / (10 + step), so that the
            average does not stay at where the network started.
    """
    if average is None:
        return None
    count = step.astype(jnp.float32)
    keep = jnp.minimum(jnp.float32(decay), (1.0 + count) / (10.0 + count))

    def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
        # What a network counts, steps for instance, is as it is now.
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        wide = keep * old.astype(jnp.float32) + (1.0 - keep) * new.astype(jnp.float32)
        return wide.astype(old.dtype)

    return jax.tree.map(averaged, average, latest)
