"""The two phases of a run: up to where masks are frozen and the network is cut, and from there."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irp_jax.config import BASELINES, Config, parse_budget, parse_channels
from irp_jax.errors import UserError, unknown
from irp_jax.models import Architecture
from irp_jax.pruning import admm, budget, cost, magnitude, masks, slim, uniform
from irp_jax.training.optimizer import SCHEDULES, partitioned, restarted
from irp_jax.training.step import TrainState

SEGMENT = 50
"""Steps of one compiled call, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """When things happen, and how much may be left.

    Attributes:
        epochs: of the whole run.
        steps_per_epoch: steps of one batch.
        segments: compiled calls an epoch is split into, all of the same number of steps, so that
            one program serves all and the progress bar moves.
        freeze_epoch: epochs completed when masks are frozen.
        stages: epochs completed when a stage begins, and with it a cycle of the learning rate.
        limit: budget in MACs or parameters.
        target: the budget as the user gave it: a fraction, or MACs or parameters.
        ratio: budget as a fraction of the dense cost.
        epsilon_steps: steps in which the radius trained against grows to the full one; all before
            the second stage.
    """

    epochs: int
    steps_per_epoch: int
    segments: int
    freeze_epoch: int
    limit: int
    target: float
    ratio: float
    stages: tuple[int, ...] = (0,)
    epsilon_steps: int = 0

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def plan(config: Config, architecture: Architecture, images: int) -> Plan:
    """Schedules a run.

    Args:
        config: of the run.
        architecture: dense.
        images: in the training split.

    Raises:
        UserError: the batch is larger than the split, the network has nothing to prune, the budget
            cannot be met, the channels given
            are not the network's or over the budget, or there are more steps than can be counted.
    """
    if config.batch_size > images:
        raise UserError(
            f"batch size {config.batch_size} is larger than the {images} training images: "
            f"give --batch-size={images} or less"
        )
    epochs = config.epochs
    amount, absolute = parse_budget(config.budget)
    kind, regularity = config.cost, config.regularity
    if not masks.units(architecture, regularity):
        raise UserError(
            f"{config.model} has nothing to prune: no layer but the last, whose outputs are classes"
        )
    dense = getattr(cost.total(architecture), kind)
    smallest = masks.floors(architecture, regularity)
    if config.method != "priced":  # the others have no floors
        smallest = dict.fromkeys(smallest, 1)
    least = getattr(cost.total(architecture, smallest), kind)
    # 0.29 of 100 is 28.999999999999996.
    limit = math.floor(round(amount if absolute else amount * dense, 6))
    if limit < least:
        share = f"{math.ceil(least / dense * 1e4) / 1e4:g}"
        possible = f"{math.ceil(least / 10) / 100:.2f}k" if absolute else share
        raise UserError(
            f"budget {config.budget} is below what this network can be pruned to: "
            f"the least possible is {possible} ({least:,} of {dense:,} {kind})"
        )
    if limit > dense:
        raise UserError(
            f"budget {config.budget} is more than the whole network: it has {dense:,} {kind}"
        )
    _check_channels(config, architecture, limit)
    stages = _stages(config)
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
        freeze_epoch=_freeze_epoch(config, stages),
        limit=limit,
        target=limit if absolute else amount,
        ratio=limit / dense,
        stages=stages,
        epsilon_steps=round(config.epsilon_warmup * first * steps_per_epoch),
    )


def _check_channels(config: Config, architecture: Architecture, limit: int) -> None:
    given, sizes = parse_channels(config.channels), architecture.groups
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
    spent = getattr(cost.total(architecture, given), config.cost)
    if given and spent > limit:
        raise UserError(
            f"--channels leave {spent:,} {config.cost}, more than the budget {config.budget} "
            f"({limit:,}): give --budget={math.ceil(spent / 10) / 100:.2f}k or fewer channels"
        )


def _stages(config: Config) -> tuple[int, ...]:
    """When the learning rate starts anew: where the published baselines load one run into the next.

    Robust ADMM trains 200 epochs densely, 200 with ADMM and 200 what is left, a third each, which
    is the default; magnitude pruning has ADMM's share for fine-tuning.
    """
    ends = [config.pretraining, config.pretraining + config.admm_stage]
    ends = ends[: BASELINES.get(config.method, 1) - 1]
    starts = [0]
    for index, end in enumerate(ends):
        left = len(ends) - index  # stages that still need an epoch each
        starts.append(min(max(round(end * config.epochs), starts[-1] + 1), config.epochs - left))
    return tuple(starts)


def _freeze_epoch(config: Config, stages: tuple[int, ...]) -> int:
    if config.method in BASELINES:
        return stages[-1]
    freeze = 1.0 if config.method == "paper" else config.ramp_stop
    # 0.28 of 25 is 7.000000000000001.
    return min(max(math.ceil(round(freeze * config.epochs, 6)), 1), config.epochs)


def optimizer(
    config: Config, plan: Plan, architecture: Architecture, frozen: bool
) -> optax.GradientTransformation:
    """SGD with momentum on the weights; on the masks the method's rule, or nothing once frozen."""
    starts = [epoch * plan.steps_per_epoch for epoch in plan.stages]
    schedule = SCHEDULES[config.schedule]
    rate = restarted(schedule, config.learning_rate, starts, plan.steps, config.restart_rate)
    weights = optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.identity() if frozen else _pull(config, plan, architecture),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=0.9),
    )
    return partitioned(
        weights, optax.set_to_zero() if frozen else _rule(config, plan, architecture)
    )


def _pull(config: Config, plan: Plan, architecture: Architecture) -> optax.GradientTransformation:
    if config.method != "admm":
        return optax.identity()
    start, stop = (epoch * plan.steps_per_epoch for epoch in plan.stages[1:])
    return admm.pull(
        architecture,
        config.regularity,
        uniform.kept(architecture, config.regularity, config.cost, plan.limit),
        rho=config.admm_rho,
        start=start,
        stop=stop,
        updates=config.admm_updates,
    )


def _rule(config: Config, plan: Plan, architecture: Architecture) -> optax.GradientTransformation:
    if config.method in BASELINES:
        return optax.set_to_zero()
    if config.method == "paper":
        return budget.hinge(
            architecture,
            config.cost,
            plan.ratio,
            config.mask_learning_rate,
            strength=config.hinge_strength,
            weight_decay=config.weight_decay,
        )
    start = round(config.ramp_start * plan.steps)
    stop = plan.freeze_epoch * plan.steps_per_epoch
    target = budget.ramp(plan.ratio, min(start, stop - 1), stop)
    return budget.priced(architecture, config.regularity, config.cost, target)


def initial_state(
    config: Config, plan: Plan, architecture: Architecture, variables: Any
) -> TrainState:
    """The state before the first step.

    Args:
        variables: the network's initial {"params", "batch_stats"}.
    """
    learned = config.method not in BASELINES
    params = {
        "weights": variables["params"],
        "masks": masks.init(architecture, config.regularity) if learned else {},
    }
    state = optimizer(config, plan, architecture, frozen=False).init(params)
    batch_stats = variables.get("batch_stats", {})
    average = {"weights": variables["params"], "batch_stats": batch_stats} if config.ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, state, average)


def freeze(
    config: Config, plan: Plan, dense: Architecture, state: TrainState
) -> tuple[TrainState, dict[str, int]]:
    """Fixes the masks, on the budget exactly, and cuts the network down to what is kept.

    With method "paper" the masks are taken as they came out; a baseline's are made here, by one
    keep rate or of as many channels as are given, which may stay under the budget. With channel
    regularity the result has no masks but smaller arrays; with weight regularity it has masks of
    +-1 and zeros behind them.

    Args:
        dense: the architecture before.
        state: on the host or a device.

    Returns:
        The state to go on from, on the host, and mask name -> units kept.
    """
    regularity = config.regularity
    state = jax.device_get(state)
    logits = _final_masks(config, plan, dense, state.params)
    gates = masks.gates(logits)
    average = state.average
    if average is not None:
        average = {**average, "weights": masks.apply(dense, average["weights"], gates)}
    trees = {
        "weights": state.params["weights"],
        "momentum": admm.dropped(state.optimizer.inner_states["weights"]),
    }
    # What is hidden is zero from here on, and so is its momentum: it stays zero.
    trees["weights"] = masks.apply(dense, trees["weights"], gates)
    hidden = masks.apply(dense, optax.tree_utils.tree_get(trees["momentum"], "trace"), gates)
    trees["momentum"] = optax.tree_utils.tree_set(trees["momentum"], trace=hidden)
    batch_stats, frozen_logits = state.batch_stats, logits
    if regularity == "channel":
        survivors = slim.surviving(logits)
        trees, batch_stats, average = slim.cut(dense, (trees, batch_stats, average), survivors)
        frozen_logits = {}
        kept = {name: len(indices) for name, indices in survivors.items()}
        if config.method == "width":
            trees["weights"] = uniform.rescale(dense, trees["weights"], kept)
            if average is not None:  # nothing is trained yet
                average = {**average, "weights": trees["weights"]}
    else:
        kept = {name: int((logit > 0).sum()) for name, logit in logits.items()}
    params = {"weights": trees["weights"], "masks": frozen_logits}
    # Frozen masks have no optimiser state, so its structure is all that is needed of a new one.
    fresh = jax.eval_shape(optimizer(config, plan, dense, frozen=True).init, params)
    inner = {**fresh.inner_states, "weights": trees["momentum"]}
    frozen = dataclasses.replace(
        state, params=params, batch_stats=batch_stats, average=average,
        optimizer=fresh._replace(inner_states=inner),
    )  # fmt: skip
    return jax.device_get(frozen), kept


def _final_masks(config: Config, plan: Plan, dense: Architecture, params: Any) -> dict[str, Any]:
    """Logits on the host that say by their sign what stays."""
    regularity, kind = config.regularity, config.cost
    if config.method == "paper":
        return params["masks"]
    if config.method == "priced":
        return budget.project(dense, params["masks"], regularity, kind, plan.limit)
    if config.method == "admm":
        parameters = admm.pulled(dense, params["weights"], regularity)
    else:
        parameters = magnitude.kernels(dense, params["weights"])
    if config.method == "width":  # any channels will do, if only they are not chosen by their size
        parameters = jax.tree.map(np.zeros_like, parameters)
    given = parse_channels(config.channels)
    kept = given or uniform.kept(dense, regularity, kind, plan.limit)
    sizes = magnitude.norms(dense, parameters, regularity)
    return jax.device_get(magnitude.largest(sizes, kept))


def example_state(
    config: Config, plan: Plan, architecture: Architecture, network: dict[str, Any], frozen: bool
) -> TrainState:
    """A state of the right structure and shapes around a restored network, to restore the rest.

    What the defence remembers is left out.
    """
    params = {"weights": network["weights"], "masks": network["masks"]}
    state = jax.eval_shape(optimizer(config, plan, architecture, frozen).init, params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    average = {name: network[name] for name in ("weights", "batch_stats")} if config.ema else None
    return TrainState(np.zeros((), np.int32), params, network["batch_stats"], zeros, average)
