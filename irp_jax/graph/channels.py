"""The channel graph of a network: which channels are pruned together, and what each costs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from irp_jax.graph.extent import Extent

Arrays = dict[str, Any]
"""Name -> array, for instance "stage1_block0/conv1/kernel"."""


@dataclasses.dataclass(frozen=True)
class Window:
    """What a convolution is besides its channels, as `jax.lax.conv_general_dilated` takes it.

    Attributes:
        positions: size of the input along each spatial axis.
        kernel: size of the kernel along each spatial axis.
        strides: of the kernel.
        padding: positions added before and after the input, for each spatial axis.
        input_dilation: above 1 for a transposed convolution.
        kernel_dilation: above 1 for a kernel with gaps.
        groups: number of groups of channels in the dense network; 1 if all channels are mixed.
    """

    positions: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A contraction: a convolution or a matrix product.

    Attributes:
        name: the kernel's name without "/kernel"; for a product of two activations, its module.
        kind: "conv", "dense", or "matmul" of two activations.
        kernel: the name of the kernel; None if the kernel is not a parameter.
        extents: the extents of the kernel's axes.
        reads: which axes of the kernel are input channels.
        writes: which axes of the kernel are output channels.
        uses: how often each weight is used for an image: for a convolution, output height times
            width.
        around: further factors of `uses`, which depend on groups.
        final: whether its output channels are the logits.
        window: the window of a convolution; None for other kinds.
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
    window: Window | None = None

    def channels(self, keep_counts: Mapping[str, Any]) -> tuple[Any, Any]:
        """Returns the numbers of input and output channels that are kept."""
        counts = [extent.count(keep_counts) for extent in self.extents]
        return math.prod(counts[i] for i in self.reads), math.prod(counts[i] for i in self.writes)

    def weights(self, keep_counts: Mapping[str, Any]) -> Any:
        """Returns the number of kernel entries that are kept."""
        return math.prod(extent.count(keep_counts) for extent in self.extents)

    def macs(self, keep_counts: Mapping[str, Any]) -> Any:
        """Returns the multiply-accumulates for an image.

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
        name: the layer that writes them.
        channels: their number.
        reason: why they cannot be pruned, as text for the user.
    """

    name: str
    channels: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGraph:
    """The channel groups, layers and arrays of a network: for pruning, costs, compaction, export.

    Attributes:
        groups: channel group -> channels, in the order in which layers first write them. A group
            has the name of the first layer that writes it.
        layers: the layers, in order of execution.
        params: name of each trained array -> the extents of its axes.
        state: name of each other array, such as batch statistics -> the extents of its axes.
        reads: name of a kernel -> the axes along which layers contract it with channels of groups.
        whole: the channels that cannot be pruned, and why.
        image_shape: (H, W, C) of one image.
        classes: number of logits.
        any_batch: whether inference computes every image independently of the others, so that one
            trace serves batches of any size.
        fingerprint: SHA-256 of what the network computes.
        latency: group -> channels kept, to nanoseconds for an image, if a table of latencies is
            attached: see `pruning.latency_table`.
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
    latency: Callable[[Mapping[str, Any]], Any] | None = None

    def __repr__(self) -> str:
        """Returns a short summary; `bin/describe` shows the whole graph."""
        macs = sum(layer.macs({}) for layer in self.layers)
        sizes = (math.prod(extent.size for extent in axes) for axes in self.params.values())
        return (
            f"ChannelGraph({len(self.groups)} groups, {len(self.layers)} layers, {macs:,} MACs, "
            f"{sum(sizes):,} parameters)"
        )

    @functools.cached_property
    def arrays(self) -> Mapping[str, tuple[Extent, ...]]:
        """The extents of the axes of all arrays, by name."""
        return {**self.params, **self.state}

    @functools.cached_property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels whose weights may be pruned one by one.

        The kernel of the logits is excluded: a class that loses its last weight never recovers.
        """
        names = [layer.kernel for layer in self.layers if layer.kernel and not layer.final]
        return tuple(dict.fromkeys(names))

    def owns(self, name: str) -> tuple[int, ...]:
        """Returns the axes of an array that hold channels of groups and do not read them.

        An axis that reads a group also counts if no array holds that group without reading it. This
        is the case for tied weights.
        """
        return tuple(
            index
            for index, extent in enumerate(self.params[name])
            if extent.groups
            and (index not in self.reads.get(name, ()) or set(extent.groups) - self._owned)
        )

    @functools.cached_property
    def _owned(self) -> set[str]:
        """The groups that some array holds along an axis that does not read them."""
        return {
            group
            for name, extents in self.params.items()
            for index, extent in enumerate(extents)
            if index not in self.reads.get(name, ())
            for group in extent.groups
        }

    def sizes(self, arrays: Mapping[str, Any]) -> dict[str, int]:
        """Returns the number of channels of each group, from the shapes of arrays.

        Args:
            arrays: name -> array, of this network or of a compact network; some may be missing.
        """
        return solve(
            (extent, np.shape(arrays[name])[index])
            for name, extents in self.arrays.items()
            if name in arrays
            for index, extent in enumerate(extents)
        )


def solve(sizes: Iterable[tuple[Extent, int]]) -> dict[str, int]:
    """Returns the channels of each group, from pairs of an extent and the size of that axis."""
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
    """Returns the channels of an axis's unknown group; None if the size does not determine them."""
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
