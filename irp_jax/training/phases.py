"""The two phases of a run: up to where masks are frozen and the network is cut, and from there."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irp_jax.config import PARENT, Config, parse_budget, parse_channels
from irp_jax.errors import UserError, unknown
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import admm, compaction, cost, masks, uniform
from irp_jax.training.methods import METHODS
from irp_jax.training.optimizer import SCHEDULES, partitioned, restarted
from irp_jax.training.plan import Plan
from irp_jax.training.step import TrainState

SEGMENT = 50
"""Steps of one compiled call, at most."""


def plan(config: Config, graph: ChannelGraph, images: int) -> Plan:
    """Schedules a run.

    Args:
        config: of the run.
        graph: of the dense network.
        images: in the training split.

    Raises:
        UserError: the batch is larger than the split, the network has nothing to prune, the budget
            cannot be met, the channels given are not the network's or over the budget, or there are
            more steps than can be counted.
    """
    if config.batch_size > images:
        raise UserError(
            f"batch size {config.batch_size} is larger than the {images} training images: "
            f"give --batch-size={images} or less"
        )
    epochs = config.epochs
    amount, absolute = parse_budget(config.budget)
    kind, granularity = config.cost, config.granularity
    if not masks.units(graph, granularity):
        kept = "; ".join(f"{whole.name}: {whole.reason}" for whole in graph.whole[:3])
        raise UserError(
            f"{config.model} has nothing to prune: all its channels are kept whole ({kept}): see "
            f"bin/describe"
        )
    dense = cost.total(graph).of(kind)
    method = METHODS[config.method]
    least = cost.total(graph, method.least(graph, granularity)).of(kind)
    # 0.29 of 100 is 28.999999999999996.
    limit = math.floor(round(amount if absolute else amount * dense, 6))
    if limit < least:
        share = f"{math.ceil(least / dense * 1e4) / 1e4:g}"
        possible = f"{math.ceil(least / 10) / 100:.2f}k" if absolute else share
        narrow = f"; --width={config.width:g} leaves it little to prune" if config.width < 1 else ""
        raise UserError(
            f"budget {config.budget} is below what this network can be pruned to: "
            f"the least possible is {possible} ({least:,} of {dense:,} {kind}){narrow}"
        )
    if limit > dense:
        raise UserError(
            f"budget {config.budget} is more than the whole network: it has {dense:,} {kind}"
        )
    _check_channels(config, graph, limit)
    stages = method.stages(config)
    first = stages[1] if len(stages) > 1 else epochs
    steps = images // config.batch_size
    shortest = math.ceil(steps / SEGMENT)
    segments = min(range(shortest, 2 * shortest + 1), key=lambda count: (steps % count, count))
    steps_per_epoch = steps // segments * segments
    if epochs * steps_per_epoch >= 2**31:  # they are counted in int32
        most = (2**31 - 1) // steps_per_epoch
        raise UserError(f"--epochs={epochs} are too many to count: give {most} or fewer")
    return Plan(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        segments=segments,
        freeze_epoch=method.freeze_epoch(config),
        limit=limit,
        target=limit if absolute else amount,
        ratio=limit / dense,
        stages=stages,
        reinit=config.reinit and config.method == "lagrangian",
        parent_epoch=stages[1] if config.teacher == PARENT else None,
        epsilon_steps=round(config.epsilon_warmup * first * steps_per_epoch),
    )


def _check_channels(config: Config, graph: ChannelGraph, limit: int) -> None:
    given, sizes = parse_channels(config.channels), graph.groups
    for name, count in given.items():
        if name not in sizes:
            raise unknown("channel group", name, sizes)
        if count > sizes[name]:
            raise UserError(
                f"--channels: {name} has {sizes[name]} channels, got {count}: give the model and "
                f"--width of the run they are from"
            )
    if given and (missing := [name for name in sizes if name not in given]):
        raise UserError(
            f"--channels must name every channel group of {config.model}: give also "
            f"{', '.join(missing)}"
        )
    spent = cost.total(graph, given).of(config.cost)
    if given and spent > limit:
        raise UserError(
            f"--channels leave {spent:,} {config.cost}, more than the budget {config.budget} "
            f"({limit:,}): give --budget={math.ceil(spent / 10) / 100:.2f}k or fewer channels"
        )


def optimizer(
    config: Config, plan: Plan, graph: ChannelGraph, frozen: bool
) -> optax.GradientTransformation:
    """SGD with momentum on the weights; on the masks the method's rule, or nothing once frozen."""
    method = METHODS[config.method]
    starts = [epoch * plan.steps_per_epoch for epoch in plan.stages]
    schedule = SCHEDULES[config.schedule]
    rate = restarted(schedule, config.learning_rate, starts, plan.steps, config.restart_rate)
    weights = optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.identity() if frozen else method.pull(config, plan, graph),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=0.9),
    )
    rule = optax.set_to_zero() if frozen else method.rule(config, plan, graph)
    return partitioned(weights, rule)


def initial_state(config: Config, plan: Plan, graph: ChannelGraph, variables: Any) -> TrainState:
    """The state before the first step.

    Args:
        variables: the network's initial {"params", "batch_stats"}, each name -> array.
    """
    logits = METHODS[config.method].initial_masks(graph, config.granularity)
    params = {"weights": variables["params"], "masks": logits}
    state = optimizer(config, plan, graph, frozen=False).init(params)
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
    example = jax.eval_shape(optimizer(config, plan, graph, frozen=True).init, params)
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

    What the defence remembers is left out.
    """
    params = {"weights": network["weights"], "masks": network["masks"]}
    state = jax.eval_shape(optimizer(config, plan, graph, frozen).init, params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    average = {name: network[name] for name in ("weights", "batch_stats")} if config.ema else None
    return TrainState(np.zeros((), np.int32), params, network["batch_stats"], zeros, average)
