"""What a network is to who prunes or counts it: layers and the channels they share."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from irp_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer with parameters, as it was found in a network.

    Attributes:
        path: where its parameters lie in the parameter tree, e.g. ("stage1_block0", "conv1").
        kind: "conv" and "dense" have a kernel (weights); "norm" has a scale and a bias per channel.
        reads: the channel group of its input, None where that may not be pruned (the image).
        writes: the channel group of its output, None where that may not be pruned (the logits).
        channels_in, channels_out: sizes of both, as declared.
        window: kernel height times kernel width, 1 for a dense layer, 0 for a norm.
        positions: output height times output width; how often each weight is used per image.
        bias: whether it adds one number per output channel.
    """

    path: tuple[str, ...]
    kind: Literal["conv", "dense", "norm"]
    reads: str | None
    writes: str | None
    channels_in: int
    channels_out: int
    window: int
    positions: int
    bias: bool

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def weights(self) -> int:
        """Number of kernel entries."""
        return self.window * self.channels_in * self.channels_out

    def of(self, tree: Any) -> Any:
        """Its own part of a tree laid out like the network's parameters."""
        for key in self.path:
            tree = tree[key]
        return tree

    def channels(self, kept: Mapping[str, Any]) -> tuple[Any, Any]:
        """Channels in and out where `kept` says the size of a group, as declared where not."""
        return (
            self.channels_in if self.reads is None else kept.get(self.reads, self.channels_in),
            self.channels_out if self.writes is None else kept.get(self.writes, self.channels_out),
        )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All layers of a network in the order they run.

    Two layers naming the same channel group read or write the same channels: those live and die
    together. Masks, cost, slimming and reports all derive from this one declaration.

    Raises:
        UserError: a group is used with two different sizes, or has the name of a layer.
    """

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        names = {layer.name for layer in self.layers}
        sizes: dict[str, int] = {}
        for layer in self.layers:
            ends = ((layer.reads, layer.channels_in), (layer.writes, layer.channels_out))
            for group, size in ends:
                if group is None:
                    continue
                if group in names:
                    raise UserError(f"channel group {group!r} has the name of a layer: rename it")
                if sizes.setdefault(group, size) != size:
                    raise UserError(
                        f"channel group {group!r} has {sizes[group]} channels, but layer "
                        f"{layer.name} uses it with {size}: use one group per set of channels"
                    )

    @functools.cached_property
    def groups(self) -> Mapping[str, int]:
        """Channel group -> number of channels, in the order they first appear."""
        sizes: dict[str, int] = {}
        for layer in self.layers:
            if layer.reads is not None:
                sizes.setdefault(layer.reads, layer.channels_in)
            if layer.writes is not None:
                sizes.setdefault(layer.writes, layer.channels_out)
        return sizes

    @functools.cached_property
    def kernels(self) -> tuple[Layer, ...]:
        """The layers that have weights: convolutions and dense layers."""
        return tuple(layer for layer in self.layers if layer.kind != "norm")
