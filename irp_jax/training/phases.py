"""The two phases of a run: masks are learned, then frozen, and the network is cut down to them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irp_jax.config import Config, parse_budget
from irp_jax.errors import UserError
from irp_jax.models import Architecture
from irp_jax.pruning import budget, cost, masks, slim
from irp_jax.training.optimizer import one_cycle, partitioned
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
        limit: budget in MACs or parameters.
        target: the budget as the user gave it: a fraction, or MACs or parameters.
        ratio: budget as a fraction of the dense cost.
    """

    epochs: int
    steps_per_epoch: int
    segments: int
    freeze_epoch: int
    limit: int
    target: float
    ratio: float

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
        UserError: the batch is larger than the split, or the budget cannot be met.
    """
    if config.batch_size > images:
        raise UserError(
            f"batch size {config.batch_size} is larger than the {images} training images: "
            f"give --batch-size={images} or less"
        )
    epochs = config.epochs
    amount, absolute = parse_budget(config.budget)
    kind, regularity = _kind(config), _regularity(config)
    dense = getattr(cost.total(architecture), kind)
    least = getattr(cost.least(architecture, regularity), kind)
    limit = math.floor(amount if absolute else amount * dense)
    if limit < least:
        possible = (
            f"{least / 1e6:.4g}M" if absolute else f"{math.ceil(least / dense * 1e4) / 1e4:g}"
        )
        raise UserError(
            f"budget {config.budget} is below what this network can be pruned to: "
            f"the least possible is {possible} ({least:,} of {dense:,} {kind})"
        )
    if limit > dense:
        raise UserError(
            f"budget {config.budget} is more than the whole network: it has {dense:,} {kind}"
        )
    freeze = epochs if config.method == "paper" else math.ceil(config.ramp_stop * epochs)
    steps = images // config.batch_size
    shortest = math.ceil(steps / SEGMENT)
    segments = min(range(shortest, 2 * shortest + 1), key=lambda count: (steps % count, count))
    return Plan(
        epochs=epochs,
        steps_per_epoch=steps // segments * segments,
        segments=segments,
        freeze_epoch=min(max(freeze, 1), epochs),
        limit=limit,
        target=limit if absolute else amount,
        ratio=limit / dense,
    )


def optimizer(
    config: Config, plan: Plan, architecture: Architecture, frozen: bool
) -> optax.GradientTransformation:
    """SGD with momentum on the weights; on the masks the method's rule, or nothing once frozen."""
    rate = one_cycle(config.learning_rate, plan.steps)
    weights = optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.sgd(rate, momentum=0.9)
    )
    return partitioned(
        weights, optax.set_to_zero() if frozen else _rule(config, plan, architecture)
    )


def _rule(config: Config, plan: Plan, architecture: Architecture) -> optax.GradientTransformation:
    kind = _kind(config)
    if config.method == "paper":
        return budget.hinge(
            architecture,
            kind,
            plan.ratio,
            config.mask_learning_rate,
            strength=config.hinge_strength,
            weight_decay=config.weight_decay,
        )
    start = round(config.ramp_start * plan.steps)
    stop = plan.freeze_epoch * plan.steps_per_epoch
    target = budget.ramp(plan.ratio, min(start, stop - 1), stop)
    return budget.priced(architecture, _regularity(config), kind, target)


def initial_state(
    config: Config, plan: Plan, architecture: Architecture, variables: Any
) -> TrainState:
    """The state before the first step.

    Args:
        variables: the network's initial {"params", "batch_stats"}.
    """
    params = {
        "weights": variables["params"],
        "masks": masks.init(architecture, _regularity(config)),
    }
    state = optimizer(config, plan, architecture, frozen=False).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), state)


def freeze(
    config: Config, plan: Plan, dense: Architecture, state: TrainState
) -> tuple[TrainState, dict[str, int]]:
    """Fixes the masks, on the budget exactly, and cuts the network down to what is kept.

    With method "paper" the masks are taken as they came out. With channel regularity the result has
    no masks but smaller arrays; with weight regularity it has masks of +-1 and zeros behind them.

    Args:
        dense: the architecture before.
        state: on the host or a device.

    Returns:
        The state to go on from, on the host, and mask name -> units kept.
    """
    regularity, kind = _regularity(config), _kind(config)
    state = jax.device_get(state)
    logits = state.params["masks"]
    if config.method != "paper":
        logits = budget.project(dense, logits, regularity, kind, plan.limit)
    gates = masks.gates(logits)
    trees = {
        "weights": state.params["weights"],
        "momentum": state.optimizer.inner_states["weights"],
    }
    # What is hidden is zero from here on, and so is its momentum: it stays zero.
    trees["weights"] = masks.apply(dense, trees["weights"], gates)
    hidden = masks.apply(dense, optax.tree_utils.tree_get(trees["momentum"], "trace"), gates)
    trees["momentum"] = optax.tree_utils.tree_set(trees["momentum"], trace=hidden)
    batch_stats, frozen_logits = state.batch_stats, logits
    if regularity == "channel":
        survivors = slim.surviving(logits)
        trees, batch_stats = slim.cut(dense, (trees, batch_stats), survivors)
        frozen_logits = {}
        kept = {name: len(indices) for name, indices in survivors.items()}
    else:
        kept = {name: int((logit > 0).sum()) for name, logit in logits.items()}
    params = {"weights": trees["weights"], "masks": frozen_logits}
    # Frozen masks have no optimiser state, so its structure is all that is needed of a new one.
    fresh = jax.eval_shape(optimizer(config, plan, dense, frozen=True).init, params)
    inner = {**fresh.inner_states, "weights": trees["momentum"]}
    frozen = TrainState(state.step, params, batch_stats, fresh._replace(inner_states=inner))
    return jax.device_get(frozen), kept


def example_state(
    config: Config, plan: Plan, architecture: Architecture, network: dict[str, Any], frozen: bool
) -> TrainState:
    """A state of the right structure and shapes around a restored network, to restore the rest."""
    params = {"weights": network["weights"], "masks": network["masks"]}
    state = jax.eval_shape(optimizer(config, plan, architecture, frozen).init, params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    return TrainState(np.zeros((), np.int32), params, network["batch_stats"], zeros)


def _kind(config: Config) -> cost.Kind:
    return "params" if config.cost == "params" else "macs"


def _regularity(config: Config) -> masks.Regularity:
    return "weight" if config.regularity == "weight" else "channel"
