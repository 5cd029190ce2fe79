"""What every method has: when masks are frozen, how they come about, and what stays then."""

import abc
from collections.abc import Mapping
from typing import Any

import optax

from irp_jax.config import Config
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import masks
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
