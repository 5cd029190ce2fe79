"""The plan of a run: its epochs, stages and budget, fixed before the first step."""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.attacks import Threat
from irp_jax.config import PARENT, Config, parse_budget, parse_channels
from irp_jax.errors import UserError, unknown
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import cost, masks

SEGMENT = 50
"""Largest number of steps of one compiled call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run: when each part happens, and how much of the cost may be left.

    Attributes:
        epochs: of the whole run.
        steps_per_epoch: steps of one batch.
        segments: compiled calls of an epoch. All have the same number of steps, so that one program
            is enough. There are several, so that the progress bar moves.
        freeze_epoch: epochs completed when masks are frozen.
        stages: epochs completed when each stage begins. Each has its own cycle of the learning
            rate.
        limit: budget in MACs, parameters or nanoseconds.
        target: the budget as given: a fraction, or a number of MACs, parameters or
            nanoseconds.
        ratio: budget as a fraction of the dense cost.
        parent_epoch: epochs completed when the dense network becomes the teacher; None without a
            parent.
        reinit: whether the network starts from new weights when masks are frozen.
        epsilon_steps: steps in which the training radius grows to the full one. All are in the
            first stage.
        quantize_epoch: epochs completed when training in 8-bit integers begins; None without.
    """

    epochs: int
    steps_per_epoch: int
    segments: int
    freeze_epoch: int
    limit: int
    target: float
    ratio: float
    stages: tuple[int, ...] = (0,)
    parent_epoch: int | None = None
    reinit: bool = False
    epsilon_steps: int = 0
    quantize_epoch: int | None = None

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def freeze_step(self) -> int:
        """Number of steps taken when masks are frozen."""
        return self.freeze_epoch * self.steps_per_epoch


class Timed(Protocol):
    """The methods of `methods.Method` that a plan uses."""

    def least(self, graph: ChannelGraph, granularity: masks.Granularity) -> dict[str, int]: ...
    def stages(self, config: Config) -> tuple[int, ...]: ...
    def freeze_epoch(self, config: Config) -> int: ...


def make_plan(
    config: Config, method: Timed, graph: ChannelGraph, images: int, segment: int = SEGMENT
) -> Plan:
    """Returns the plan of a run.

    Args:
        config: of the run.
        method: of the run, from `methods.METHODS`.
        graph: of the dense network.
        images: number of images in the training split.
        segment: largest number of steps of one compiled call.

    Raises:
        UserError: the batch is larger than the split, the network has nothing to prune, the budget
            cannot be met, the given channels are not those of the network or exceed the budget,
            quantization begins before the freeze, or there are more steps than int32 can count.
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
    least = cost.total(graph, method.least(graph, granularity)).of(kind)
    # Rounded, because 0.29 * 100 is 28.999999999999996.
    limit = math.floor(round(amount if absolute else amount * dense, 6))
    if limit < least:
        share = f"{math.ceil(least / dense * 1e4) / 1e4:g}"
        possible = f"{math.ceil(least / 10) / 100:.2f}k" if absolute else share
        narrow = f"; --width={config.width:g} leaves it little to prune" if config.width < 1 else ""
        raise UserError(
            f"budget {config.budget} is below what this network can be pruned to: "
            f"the least possible is {possible} ({least:,} of {dense:,} {cost.UNITS[kind]}){narrow}"
        )
    if limit > dense:
        raise UserError(
            f"budget {config.budget} is more than the whole network: it has {dense:,} "
            f"{cost.UNITS[kind]}"
        )
    _check_channels(config, graph, limit)
    stages = method.stages(config)
    first = stages[1] if len(stages) > 1 else epochs
    steps = images // config.batch_size
    shortest = math.ceil(steps / segment)
    segments = min(range(shortest, 2 * shortest + 1), key=lambda count: (steps % count, count))
    steps_per_epoch = steps // segments * segments
    if epochs * steps_per_epoch >= 2**31:  # steps are counted in int32
        most = (2**31 - 1) // steps_per_epoch
        raise UserError(f"--epochs={epochs} are too many to count: give {most} or fewer")
    freeze_epoch = method.freeze_epoch(config)
    return Plan(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        segments=segments,
        freeze_epoch=freeze_epoch,
        limit=limit,
        target=limit if absolute else amount,
        ratio=limit / dense,
        stages=stages,
        reinit=config.reinit and config.method == "lagrangian",
        parent_epoch=stages[1] if config.teacher == PARENT else None,
        epsilon_steps=round(config.epsilon_warmup * first * steps_per_epoch),
        quantize_epoch=_quantize_epoch(config, freeze_epoch) if config.quantize else None,
    )


def _quantize_epoch(config: Config, freeze_epoch: int) -> int:
    """Returns the epochs completed when quantization begins: the last epoch is always quantized."""
    if freeze_epoch == config.epochs:
        raise UserError(
            f"--quantize={config.quantize} trains the compact network, and the masks are frozen at "
            f"the end of the {config.epochs} epochs: give more --epochs, or freeze them earlier"
        )
    # Rounded, because 0.28 * 25 is 7.000000000000001.
    start = min(math.ceil(round(config.quantize_start * config.epochs, 6)), config.epochs - 1)
    if start < freeze_epoch:
        least = math.ceil(freeze_epoch / config.epochs * 1e3) / 1e3
        raise UserError(
            f"--quantize-start={config.quantize_start:g} is before the masks are frozen, after "
            f"epoch {freeze_epoch} of {config.epochs}: give {least:g} or more"
        )
    return start


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
            f"--channels leave {spent:,} {cost.UNITS[config.cost]}, more than the budget "
            f"{config.budget} ({limit:,}): give "
            f"--budget={math.ceil(spent / 10) / 100:.2f}k or fewer channels"
        )


def threat_at(threat: Threat, step: jax.Array | np.ndarray | int, epsilon_steps: int) -> Threat:
    """Returns the ball that the network is trained against at a step. Its radius grows linearly.

    At the full radius, training on attacks of one step can overfit to that step within the first
    epoch (docs/accuracy.md). A warm-up of the radius is from Qin et al. 2019 ("Adversarial
    robustness through local linearization"). For training on attacks of many steps Pang et al.
    2021 ("Bag of tricks for adversarial training") found that it makes no difference.

    Args:
        threat: the ball after the warm-up.
        step: () int32, steps taken since the start of the run.
        epsilon_steps: steps in which the radius grows; 0 gives the full radius at every step.

    Returns:
        The ball of radius epsilon * min(1, (step + 1) / epsilon_steps). The radius is never zero.
    """
    if not epsilon_steps:
        return threat
    share = jnp.minimum(1.0, (step + 1) / epsilon_steps)
    return dataclasses.replace(threat, epsilon=threat.epsilon * share)
