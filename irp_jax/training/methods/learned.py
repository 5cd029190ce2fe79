"""Masks that are learned with the weights: by the Lagrangian rule, and as published."""

import math
from typing import Any

import optax

from irp_jax.config import PARENT, Config
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import budget, masks
from irp_jax.pruning.masks import Granularity, Masks
from irp_jax.training.methods.method import Method
from irp_jax.training.plan import Plan


class Lagrangian(Method):
    """The default: see `budget.lagrangian`. The result is on the budget exactly."""

    def least(self, graph: ChannelGraph, granularity: Granularity) -> dict[str, int]:
        """The minimum that the rule holds."""
        return masks.min_keep(graph, granularity)

    def stages(self, config: Config) -> tuple[int, ...]:
        """One, or two where the dense network becomes the teacher: it is trained to the end of a
        cycle of the learning rate first.
        """
        if config.teacher != PARENT:
            return (0,)
        return (0, min(max(round(config.prune_start * config.epochs), 1), config.epochs - 1))

    def freeze_epoch(self, config: Config) -> int:
        """Where the sparsity schedule ends."""
        # 0.28 of 25 is 7.000000000000001.
        stop = math.ceil(round(config.prune_stop * config.epochs, 6))
        return min(max(stop, self.stages(config)[-1] + 1), config.epochs)

    def initial_masks(self, graph: ChannelGraph, granularity: Granularity) -> Masks:
        """All is kept."""
        return masks.init(graph, granularity)

    def rule(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """The Lagrangian rule, along the sparsity schedule."""
        stop = plan.freeze_step
        start = min(round(config.prune_start * plan.steps), stop - 1)
        if plan.parent_epoch is not None:
            start = plan.parent_epoch * plan.steps_per_epoch
        target = budget.sparsity_schedule(plan.ratio, start, stop)
        return budget.lagrangian(
            graph, config.granularity, config.cost, target, spread=config.spread
        )

    def final_masks(
        self, config: Config, plan: Plan, graph: ChannelGraph, params: Any
    ) -> dict[str, Any]:
        """The best units that fit."""
        return budget.project(
            graph, params["masks"], config.granularity, config.cost, plan.limit,
            spread=config.spread,
        )  # fmt: skip


class Hinge(Method):
    """As published (Vemparala et al. 2021): see `budget.hinge`. Masks move to the last epoch, and
    are taken as they come out.
    """

    def freeze_epoch(self, config: Config) -> int:
        """The end."""
        return config.epochs

    def initial_masks(self, graph: ChannelGraph, granularity: Granularity) -> Masks:
        """All is kept."""
        return masks.init(graph, granularity)

    def rule(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """The hinge."""
        return budget.hinge(
            graph,
            config.cost,
            plan.ratio,
            config.mask_learning_rate,
            strength=config.hinge_strength,
            weight_decay=config.weight_decay,
        )

    def final_masks(
        self, config: Config, plan: Plan, graph: ChannelGraph, params: Any
    ) -> dict[str, Any]:
        """What was learned."""
        return params["masks"]
