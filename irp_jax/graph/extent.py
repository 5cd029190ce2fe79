"""The number of positions of an axis, as a function of the channels that its groups keep."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from irp_jax.graph.axes import Axis, Kind, root


@dataclasses.dataclass(frozen=True)
class Extent:
    """One axis of an array.

    Attributes:
        kind: "fixed"; "group", the channels of a group; "concatenation" or row-major "product" of
            `parts`.
        size: number of positions in the dense network.
        group: the group's name; "" for other kinds.
        parts: the extents of a concatenation or product.
    """

    kind: Literal["fixed", "group"] | Kind
    size: int
    group: str = ""
    parts: tuple["Extent", ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the extent depends on, without repeats."""
        found = [self.group] if self.kind == "group" else []
        for part in self.parts:
            found += part.groups
        return tuple(dict.fromkeys(found))

    def count(self, keep_counts: Mapping[str, Any]) -> Any:
        """Returns the number of positions kept.

        Args:
            keep_counts: group -> channels kept, whole numbers or scalars of any array library; a
                missing group keeps all channels.
        """
        if self.kind == "fixed":
            return self.size
        if self.kind == "group":
            return keep_counts.get(self.group, self.size)
        counts = [part.count(keep_counts) for part in self.parts]
        return sum(counts) if self.kind == "concatenation" else math.prod(counts)

    def indices(self, keep_indices: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the positions kept, ascending: (count,) int.

        Args:
            keep_indices: group -> indices of the channels kept, ascending; a missing group keeps
                all channels.
        """
        if self.kind == "group" and self.group in keep_indices:
            return np.asarray(keep_indices[self.group])
        if self.kind in ("fixed", "group"):
            return np.arange(self.size)
        parts = [part.indices(keep_indices) for part in self.parts]
        if self.kind == "concatenation":
            offsets = np.cumsum([0, *(part.size for part in self.parts[:-1])])
            return np.concatenate([p + o for p, o in zip(parts, offsets, strict=True)])
        return np.ravel_multi_index(
            np.meshgrid(*parts, indexing="ij"), [part.size for part in self.parts]
        ).ravel()

    def gate(self, gates: Mapping[str, Any]) -> Any:
        """Returns the factor of each position: (size,) float32.

        Args:
            gates: group -> (channels,) factors; a missing group has factors of 1.
        """
        if self.kind == "group" and self.group in gates:
            return gates[self.group]
        if self.kind in ("fixed", "group"):
            return jnp.ones(self.size, jnp.float32)
        parts = [part.gate(gates) for part in self.parts]
        if self.kind == "concatenation":
            return jnp.concatenate(parts)
        whole = parts[0]
        for part in parts[1:]:
            whole = (whole[:, None] * part).ravel()
        return whole

    def gather(self, values: Any) -> dict[str, Any]:
        """Sums values over the positions of each channel: group -> (channels,).

        Args:
            values: (size,), one for each position.
        """
        found: dict[str, Any] = {}
        if self.kind == "group":
            found[self.group] = values
        elif self.kind == "concatenation":
            start = 0
            for part in self.parts:
                _add(found, part.gather(values[start : start + part.size]))
                start += part.size
        elif self.kind == "product":
            grid = values.reshape([part.size for part in self.parts])
            for index, part in enumerate(self.parts):
                others = tuple(i for i in range(len(self.parts)) if i != index)
                _add(found, part.gather(grid.sum(others)))
        return found


def _add(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, values in more.items():
        total[name] = total[name] + values if name in total else values


def extent_of(axis: Axis) -> Extent:
    """Returns the extent of an axis whose groups are named."""
    axis = root(axis)
    if axis.kind is not None:
        parts = tuple(extent_of(part) for part in axis.parts)
        if all(part.kind == "fixed" for part in parts):
            return Extent("fixed", axis.size)
        return Extent(axis.kind, axis.size, "", parts)
    if axis.group is not None and axis.whole is None:
        return Extent("group", axis.size, axis.group)
    return Extent("fixed", axis.size)


def axis_of(extent: Extent, groups: dict[str, Axis]) -> Axis:
    """Returns the axis of an extent, with one axis for each group: the inverse of `extent_of`."""
    if extent.kind == "fixed":
        return Axis(extent.size, "")
    if extent.kind == "group":
        if extent.group not in groups:
            axis = groups[extent.group] = Axis(extent.size)
            axis.group = extent.group
        return groups[extent.group]
    axis = Axis(extent.size)
    axis.kind = extent.kind
    axis.parts = tuple(axis_of(part, groups) for part in extent.parts)
    return axis
