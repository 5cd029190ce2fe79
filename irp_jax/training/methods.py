"""Pruning methods: how masks start, how they change, and which units are kept.

`lagrangian` and `hinge` learn masks together with the weights. The baselines learn none. They use
one keep rate for all groups or kernels, and keep the largest units. In-train pruning should be
better than the baselines.
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
from irp_jax.pruning import admm, magnitude, mask_rules, masks, uniform
from irp_jax.pruning.magnitude import Parameters
from irp_jax.pruning.masks import Granularity, Masks
from irp_jax.training.plan import Plan


class Method(abc.ABC):
    """A pruning method. It has no state, so all runs share one object."""

    def least(self, graph: ChannelGraph, granularity: Granularity) -> dict[str, int]:
        """Returns mask name -> smallest number of units of a budget that is possible; here one."""
        return dict.fromkeys(masks.units(graph, granularity), 1)

    def stages(self, config: Config) -> tuple[int, ...]:
        """Returns the epochs completed when each stage starts; here one stage.

        The schedule of the learning rate starts anew with each stage.
        """
        return (0,)

    @abc.abstractmethod
    def freeze_epoch(self, config: Config) -> int:
        """Returns the number of epochs completed when masks are frozen."""

    @abc.abstractmethod
    def initial_masks(self, graph: ChannelGraph, granularity: Granularity) -> Masks:
        """Returns the initial logits; empty if the method learns no masks."""

    @abc.abstractmethod
    def rule(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """Returns the transformation from gradients of the masks to their updates."""

    def pull(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """Returns what is added to the gradient of the weights before the freeze; here nothing."""
        return optax.identity()

    @abc.abstractmethod
    def final_masks(
        self, config: Config, plan: Plan, graph: ChannelGraph, params: Any
    ) -> dict[str, Any]:
        """Returns logits on the host. A unit is kept if its logit is positive.

        Args:
            config, plan: of the run.
            graph: of the dense network.
            params: {"weights", "masks"} at the freeze, on the host.
        """

    def after_cut(self, graph: ChannelGraph, weights: Any, keep_counts: Mapping[str, int]) -> Any:
        """Returns the weights that the compact network starts with; here the ones it was cut to."""
        return weights


class Lagrangian(Method):
    """The default, see `budget.lagrangian`. The exact cost of the result is within the budget."""

    def least(self, graph: ChannelGraph, granularity: Granularity) -> dict[str, int]:
        """Returns the minimum that the rule enforces."""
        return masks.min_keep(graph, granularity)

    def stages(self, config: Config) -> tuple[int, ...]:
        """Returns one stage, or two with a parent.

        The parent then trains for a whole schedule of the learning rate.
        """
        if config.teacher != PARENT:
            return (0,)
        return (0, min(max(round(config.prune_start * config.epochs), 1), config.epochs - 1))

    def freeze_epoch(self, config: Config) -> int:
        """Returns the epoch in which the sparsity schedule ends."""
        # Rounded, because 0.28 * 25 is 7.000000000000001.
        stop = math.ceil(round(config.prune_stop * config.epochs, 6))
        return min(max(stop, self.stages(config)[-1] + 1), config.epochs)

    def initial_masks(self, graph: ChannelGraph, granularity: Granularity) -> Masks:
        """Returns logits that keep all units."""
        return masks.init(graph, granularity)

    def rule(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """Returns the Lagrangian rule with the sparsity schedule."""
        stop = plan.freeze_step
        start = min(round(config.prune_start * plan.steps), stop - 1)
        if plan.parent_epoch is not None:
            start = plan.parent_epoch * plan.steps_per_epoch
        target = mask_rules.sparsity_schedule(plan.ratio, start, stop)
        return mask_rules.lagrangian(
            graph, config.granularity, config.cost, target, spread=config.spread
        )

    def final_masks(
        self, config: Config, plan: Plan, graph: ChannelGraph, params: Any
    ) -> dict[str, Any]:
        """Returns the units with the highest logits that fit into the budget."""
        return mask_rules.best_within(
            graph, params["masks"], config.granularity, config.cost, plan.limit,
            spread=config.spread,
        )  # fmt: skip


class Hinge(Method):
    """The published rule (Vemparala et al. 2021), see `budget.hinge`.

    Masks change until the last epoch. The learned masks are used as they are.
    """

    def freeze_epoch(self, config: Config) -> int:
        """Returns the last epoch."""
        return config.epochs

    def initial_masks(self, graph: ChannelGraph, granularity: Granularity) -> Masks:
        """Returns logits that keep all units."""
        return masks.init(graph, granularity)

    def rule(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """Returns the hinge rule."""
        return mask_rules.hinge(
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
        """Returns the learned masks."""
        return params["masks"]


class Baseline(Method):
    """A method that prunes once, at the start of its last stage."""

    def ends(self, config: Config) -> tuple[float, ...]:
        """Returns the ends of all stages but the last, as fractions of training; here one stage."""
        return ()

    @abc.abstractmethod
    def measured(self, graph: ChannelGraph, weights: Any, granularity: Granularity) -> Parameters:
        """Returns the parameters whose norms decide which units are kept."""

    def keep_counts(self, config: Config, graph: ChannelGraph, limit: int) -> dict[str, int]:
        """Returns mask name -> units kept; here by the highest keep rate that the budget allows."""
        return uniform.keep_counts(graph, config.granularity, config.cost, limit)

    def stages(self, config: Config) -> tuple[int, ...]:
        """Returns stages of whole epochs, each of at least one epoch."""
        ends, starts = self.ends(config), [0]
        for index, end in enumerate(ends):
            left = len(ends) - index  # later stages, which need one epoch each
            start = min(max(round(end * config.epochs), starts[-1] + 1), config.epochs - left)
            starts.append(start)
        return tuple(starts)

    def freeze_epoch(self, config: Config) -> int:
        """Returns the epoch in which the last stage begins."""
        return self.stages(config)[-1]

    def initial_masks(self, graph: ChannelGraph, granularity: Granularity) -> Masks:
        """Returns no masks."""
        return {}

    def rule(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """Returns a transformation that changes nothing, because there are no masks."""
        return optax.set_to_zero()

    def final_masks(
        self, config: Config, plan: Plan, graph: ChannelGraph, params: Any
    ) -> dict[str, Any]:
        """Returns logits that keep the units with the largest norms."""
        parameters = self.measured(graph, params["weights"], config.granularity)
        sizes = magnitude.norms(graph, parameters, config.granularity)
        keep_counts = self.keep_counts(config, graph, plan.limit)
        return jax.device_get(magnitude.largest(sizes, keep_counts))


class Width(Baseline):
    """A network that is narrow from the start, uniformly or as `Config.channels` says."""

    def measured(self, graph: ChannelGraph, weights: Any, granularity: Granularity) -> Parameters:
        """Returns zeros, so that channels are not chosen by their norms."""
        return jax.tree.map(np.zeros_like, magnitude.kernels(graph, weights))

    def keep_counts(self, config: Config, graph: ChannelGraph, limit: int) -> dict[str, int]:
        """Returns `Config.channels` if they are given, else uniform counts."""
        return parse_channels(config.channels) or super().keep_counts(config, graph, limit)

    def after_cut(self, graph: ChannelGraph, weights: Any, keep_counts: Mapping[str, int]) -> Any:
        """Returns weights with the scale of the narrow network's initialisation."""
        return uniform.rescale(graph, weights, keep_counts)


class Magnitude(Baseline):
    """Trains the dense network, prunes it once by magnitude and fine-tunes it."""

    def ends(self, config: Config) -> tuple[float, ...]:
        """Returns the end of dense training. The rest is fine-tuning.

        By default fine-tuning is as long as two stages of Robust ADMM.
        """
        return (config.pretraining,)

    def measured(self, graph: ChannelGraph, weights: Any, granularity: Granularity) -> Parameters:
        """Returns the kernels."""
        return magnitude.kernels(graph, weights)


class Admm(Baseline):
    """Robust ADMM (Ye et al. 2019), see `pruning.admm`.

    The authors train 200 epochs densely, 200 with ADMM and 200 with the pruned network, each from
    the result before. The default is a third of training for each, too.
    """

    def ends(self, config: Config) -> tuple[float, ...]:
        """Returns the ends of dense training and of ADMM."""
        return (config.pretraining, config.pretraining + config.admm_stage)

    def pull(self, config: Config, plan: Plan, graph: ChannelGraph) -> optax.GradientTransformation:
        """Returns the pull towards the pruned network in the second stage."""
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
        """Returns the parameters that ADMM pulls."""
        return admm.pulled(graph, weights, granularity)


METHODS: dict[str, Method] = {
    "lagrangian": Lagrangian(),
    "hinge": Hinge(),
    "width": Width(),
    "magnitude": Magnitude(),
    "admm": Admm(),
}
"""Name on the command line -> method."""
