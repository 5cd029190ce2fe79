"""Methods that learn no masks: one keep rate for all groups or kernels, and the largest units stay.

They are what in-train pruning has to be better than.
"""

import abc
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from irp_jax.config import Config, parse_channels
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import admm, magnitude, uniform
from irp_jax.pruning.magnitude import Parameters
from irp_jax.pruning.masks import Granularity, Masks
from irp_jax.training.methods.method import Method
from irp_jax.training.plan import Plan


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
