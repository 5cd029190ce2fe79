"""The channel graph of a network: which channels live and die together, and what each costs."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from irp_jax.graph.extent import Extent

Arrays = dict[str, Any]
"""Name -> array, for instance "stage1_block0/conv1/kernel"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A contraction: a convolution or a matrix product.

    Attributes:
        name: of its kernel, without "/kernel"; of a product of two activations, where it happens.
        kind: "conv", "dense", or "matmul" of two activations.
        kernel: name of the array that it contracts with; None where that is computed.
        extents: of the kernel's axes.
        reads: which axes of the kernel are input channels.
        writes: which axes of the kernel are output channels.
        uses: how often each weight is used for an image, where that is fixed: output height times
            width of a convolution.
        around: further factors of that, which depend on groups.
        final: whether its output channels are the logits.
    """

    name: str
    kind: Literal["conv", "dense", "matmul"]
    kernel: str | None
    extents: tuple[Extent, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    uses: int
    around: tuple[Extent, ...] = ()
    final: bool = False

    def channels(self, keep_counts: Mapping[str, Any]) -> tuple[Any, Any]:
        """Channels in and out, of those that groups keep."""
        counts = [extent.count(keep_counts) for extent in self.extents]
        return math.prod(counts[i] for i in self.reads), math.prod(counts[i] for i in self.writes)

    def weights(self, keep_counts: Mapping[str, Any]) -> Any:
        """Number of kernel entries."""
        return math.prod(extent.count(keep_counts) for extent in self.extents)

    def macs(self, keep_counts: Mapping[str, Any]) -> Any:
        """Multiply-accumulates for an image.

        Args:
            keep_counts: group -> channels kept, or name of the kernel -> weights kept.
        """
        weights = keep_counts.get(self.kernel or "")
        weights = self.weights(keep_counts) if weights is None else weights
        return self.uses * weights * math.prod(extent.count(keep_counts) for extent in self.around)


@dataclasses.dataclass(frozen=True)
class Whole:
    """Channels that cannot be pruned.

    Attributes:
        name: of the layer that writes them.
        channels: how many.
        reason: why, in words.
    """

    name: str
    channels: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGraph:
    """What a network is to who prunes, counts, cuts or exports it.

    Attributes:
        groups: channel group -> channels, in the order they are first written. A group has the name
            of the first layer that writes it.
        layers: in the order they run.
        params: name of each trained array -> its axes.
        state: name of each other array -> its axes, batch statistics for instance.
        reads: name of a kernel -> the axes along which layers contract it with channels of groups.
        whole: channels that are kept whole, and why.
        image_shape: (H, W, C).
        classes: number of logits.
        any_batch: whether in inference every image is computed by itself, so that one trace serves
            batches of any size.
        fingerprint: SHA-256 of what the network computes.
    """

    groups: Mapping[str, int]
    layers: tuple[Layer, ...]
    params: Mapping[str, tuple[Extent, ...]]
    state: Mapping[str, tuple[Extent, ...]]
    reads: Mapping[str, tuple[int, ...]]
    whole: tuple[Whole, ...]
    image_shape: tuple[int, int, int]
    classes: int
    any_batch: bool
    fingerprint: str

    def __repr__(self) -> str:
        """In short; `bin/describe` shows all of it."""
        macs = sum(layer.macs({}) for layer in self.layers)
        sizes = (math.prod(extent.size for extent in axes) for axes in self.params.values())
        return (
            f"ChannelGraph({len(self.groups)} groups, {len(self.layers)} layers, {macs:,} MACs, "
            f"{sum(sizes):,} parameters)"
        )

    @functools.cached_property
    def arrays(self) -> Mapping[str, tuple[Extent, ...]]:
        """Name -> axes of all arrays."""
        return {**self.params, **self.state}

    @functools.cached_property
    def kernels(self) -> tuple[str, ...]:
        """Names of the arrays whose weights may be pruned one by one: all kernels of layers but
        that of the logits, since a class whose last weight is gone is lost for good."""
        names = [layer.kernel for layer in self.layers if layer.kernel and not layer.final]
        return tuple(dict.fromkeys(names))

    def owns(self, name: str) -> tuple[int, ...]:
        """Axes of an array that go with channels of groups: that hold them and do not read them.

        A kernel that is read along all its axes, as tied weights are, goes with what it reads.
        """
        return tuple(
            index
            for index, extent in enumerate(self.params[name])
            if extent.groups
            and (index not in self.reads.get(name, ()) or set(extent.groups) - self._owned)
        )

    @functools.cached_property
    def _owned(self) -> set[str]:
        """Groups that some array holds without reading them."""
        return {
            group
            for name, extents in self.params.items()
            for index, extent in enumerate(extents)
            if index not in self.reads.get(name, ())
            for group in extent.groups
        }

    def sizes(self, arrays: Mapping[str, Any]) -> dict[str, int]:
        """The channels that each group has in a network's arrays: group -> count.

        Args:
            arrays: of this network or of one cut from it; those that are missing are not asked.
        """
        return solve(
            (extent, np.shape(arrays[name])[index])
            for name, extents in self.arrays.items()
            if name in arrays
            for index, extent in enumerate(extents)
        )


def solve(sizes: Iterable[tuple[Extent, int]]) -> dict[str, int]:
    """The channels of groups, from the sizes of axes that are made of them."""
    known: dict[str, int] = {}
    waiting = [(extent, size) for extent, size in sizes if extent.groups]
    while waiting:
        left = []
        for extent, size in waiting:
            found = _solved(extent, size, known)
            if found is None:
                left.append((extent, size))
            else:
                known.update(found)
        if len(left) == len(waiting):
            break
        waiting = left
    return known


def _solved(extent: Extent, size: int, known: Mapping[str, int]) -> dict[str, int] | None:
    """What an axis's size says of the one group in it that is not known yet; None if nothing."""
    unknown = [group for group in extent.groups if group not in known]
    if not unknown:
        return {}
    if extent.kind == "group":
        return {extent.group: size}
    open_ = [part for part in extent.parts if any(g in unknown for g in part.groups)]
    if any(part != open_[0] for part in open_):
        return None
    rest = [part.count(known) for part in extent.parts if part not in open_]
    if extent.kind == "concatenation":
        each = (size - sum(rest)) // len(open_)
    else:
        each = round((size // math.prod(rest)) ** (1 / len(open_)))
    return _solved(open_[0], each, known)
