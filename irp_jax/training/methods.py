"""How the network is made small: which masks there are, what moves them, and what stays.

`lagrangian` and `hinge` learn masks with the weights. The baselines learn none: one keep rate holds
for all groups or kernels, and the largest units stay. In-train pruning has to be better than them.
"""

import abc
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from irp_jax.config import PARENT, Config, parse_channels
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import admm, budget, magnitude, masks, uniform
from irp_jax.pruning.magnitude import Parameters
from irp_jax.pruning.masks import Granularity, Masks
from irp_jax.training.plan import Plan


class Method(abc.ABC):
    """How the network is made small. Without a state: one object serves all runs."""

    def least(self, graph: ChannelGraph, granularity: Granularity) -> dict[str, int]:
        """Mask name -> units that stay whatever the budget; here one, without which no layer is."""
        return dict.fromkeys(masks.units(graph, granularity), 1)

    def stages(self, config: Config) -> tuple[int, ...]:
        """Epochs completed when a stage begins, and the learning rate anew with it; here one."""
        return (0,)

    @abc.abstractmethod
    def freeze_epoch(self, config: Config) -> int:
        """Epochs completed when masks are frozen."""

    @abc.abstractmethod
    def initial_masks(self, graph: ChannelGraph, granularity: Granularity) -> Masks:
        """Logits to begin with; none where no masks are learned."""

    @abc.abstractmethod
    def rule(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """What moves the masks, given the gradient of the loss."""

    def pull(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """What is added to the gradient of the weights before the freeze; here nothing."""
        return optax.identity()

    @abc.abstractmethod
    def final_masks(
        self, config: Config, plan: Plan, graph: ChannelGraph, params: Any
    ) -> dict[str, Any]:
        """Logits on the host that say by their sign what stays.

        Args:
            config, plan: of the run.
            graph: of the dense network.
            params: {"weights", "masks"} at the freeze, on the host.
        """

    def after_cut(self, graph: ChannelGraph, weights: Any, keep_counts: Mapping[str, int]) -> Any:
        """Weights to go on from once channels were cut out; here what was cut out."""
        return weights


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


class Baseline(Method):
    """Cuts once, at the beginning of its last stage."""

    def ends(self, config: Config) -> tuple[float, ...]:
        """Where all stages but the last one end, as fractions of training; here there is one."""
        return ()

    @abc.abstractmethod
    def measured(self, graph: ChannelGraph, weights: Any, granularity: Granularity) -> Parameters:
        """The parameters whose size says which units are the largest."""

    def keep_counts(self, config: Config, graph: ChannelGraph, limit: int) -> dict[str, int]:
        """Mask name -> units that stay; here at the highest rate that the budget allows."""
        return uniform.keep_counts(graph, config.granularity, config.cost, limit)

    def stages(self, config: Config) -> tuple[int, ...]:
        """Whole epochs, at least one a stage."""
        ends, starts = self.ends(config), [0]
        for index, end in enumerate(ends):
            left = len(ends) - index  # stages that still need an epoch each
            start = min(max(round(end * config.epochs), starts[-1] + 1), config.epochs - left)
            starts.append(start)
        return tuple(starts)

    def freeze_epoch(self, config: Config) -> int:
        """Where the last stage begins."""
        return self.stages(config)[-1]

    def initial_masks(self, graph: ChannelGraph, granularity: Granularity) -> Masks:
        """None."""
        return {}

    def rule(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """There is nothing to move."""
        return optax.set_to_zero()

    def final_masks(
        self, config: Config, plan: Plan, graph: ChannelGraph, params: Any
    ) -> dict[str, Any]:
        """The largest units."""
        parameters = self.measured(graph, params["weights"], config.granularity)
        sizes = magnitude.norms(graph, parameters, config.granularity)
        keep_counts = self.keep_counts(config, graph, plan.limit)
        return jax.device_get(magnitude.largest(sizes, keep_counts))


class Width(Baseline):
    """Narrow from the start, uniformly or as `Config.channels` says: nothing is ever pruned."""

    def measured(self, graph: ChannelGraph, weights: Any, granularity: Granularity) -> Parameters:
        """Zeros: any channels will do, if only they are not chosen by their size."""
        return jax.tree.map(np.zeros_like, magnitude.kernels(graph, weights))

    def keep_counts(self, config: Config, graph: ChannelGraph, limit: int) -> dict[str, int]:
        """As many channels as are given, if any are."""
        return parse_channels(config.channels) or super().keep_counts(config, graph, limit)

    def after_cut(self, graph: ChannelGraph, weights: Any, keep_counts: Mapping[str, int]) -> Any:
        """What the narrow network would begin with."""
        return uniform.rescale(graph, weights, keep_counts)


class Magnitude(Baseline):
    """Trained dense, pruned once, fine-tuned."""

    def ends(self, config: Config) -> tuple[float, ...]:
        """Of training dense; the rest, as long as two stages of Robust ADMM, is fine-tuning."""
        return (config.pretraining,)

    def measured(self, graph: ChannelGraph, weights: Any, granularity: Granularity) -> Parameters:
        """Kernels."""
        return magnitude.kernels(graph, weights)


class Admm(Baseline):
    """Robust ADMM (Ye et al. 2019): see `pruning.admm`.

    Its authors load each run into the next: 200 epochs densely, 200 with ADMM and 200 of what is
    left, a third each, which is the default.
    """

    def ends(self, config: Config) -> tuple[float, ...]:
        """Of training dense, and of ADMM."""
        return (config.pretraining, config.pretraining + config.admm_stage)

    def pull(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """Towards the pruned network, in the second stage."""
        start, stop = (epoch * plan.steps_per_epoch for epoch in plan.stages[1:])
        return admm.pull(
            graph,
            config.granularity,
            self.keep_counts(config, graph, plan.limit),
            rho=config.admm_rho,
            start=start,
            stop=stop,
            updates=config.admm_updates,
        )

    def measured(self, graph: ChannelGraph, weights: Any, granularity: Granularity) -> Parameters:
        """What was pulled."""
        return admm.pulled(graph, weights, granularity)


METHODS: dict[str, Method] = {
    "lagrangian": Lagrangian(),
    "hinge": Hinge(),
    "width": Width(),
    "magnitude": Magnitude(),
    "admm": Admm(),
}
"""By their names on the command line."""
