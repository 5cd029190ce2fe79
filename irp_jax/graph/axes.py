"""Axes of arrays, and which of them must keep the same positions: a union-find structure.

An axis is simple or composite. A composite axis is the concatenation of other axes, or their
row-major product, as in a flattened feature map. Tying two axes states that position i of one is
pruned together with position i of the other. A simple axis that is tied to a composite one gets the
same parts, also where it was used before. Axes that cannot be tied part by part are kept whole:
their sizes never change, which is always correct.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Kind = Literal["concatenation", "product"]

BATCH = "(batch)"
"""The group name of the axis that counts images."""


class Axis:
    """An axis of one or more arrays. Two axes are the same if their `root` is the same object.

    Attributes:
        size: its size in the dense network.
        whole: why the axis keeps its size; None while it may shrink.
        group: the name of its channel group, once that is known.
    """

    __slots__ = ("group", "kind", "parent", "parts", "size", "whole")

    def __init__(self, size: Any, whole: str | None = None) -> None:
        self.size = int(size) if isinstance(size, np.integer) else size
        self.parent: Axis | None = None
        self.kind: Kind | None = None
        self.parts: tuple[Axis, ...] = ()
        self.whole = "a single channel" if size == 1 and whole is None else whole
        self.group: str | None = None


def root(axis: Axis) -> Axis:
    """Returns the axis that represents all axes tied to this one."""
    while axis.parent is not None:
        axis = axis.parent
    return axis


def made(kind: Kind, parts: Sequence[Axis]) -> Axis:
    """Returns the concatenation or product of axes; if there is only one, that axis."""
    flat: list[Axis] = []
    for part in map(root, parts):
        flat += part.parts if part.kind == kind else [part]
    if kind == "product":
        flat = [part for part in flat if part.size != 1] or flat[:1]
    if len(flat) == 1:
        return flat[0]
    sizes = [part.size for part in flat]
    axis = Axis(sum(sizes) if kind == "concatenation" else math.prod(sizes))
    axis.kind, axis.parts, axis.whole = kind, tuple(flat), None
    return axis


def leaves(axis: Axis) -> list[Axis]:
    """Returns the simple axes that an axis is made of."""
    axis = root(axis)
    if axis.kind is None:
        return [axis]
    return [leaf for part in axis.parts for leaf in leaves(part)]


def is_whole(axis: Axis) -> bool:
    """Returns whether the size of an axis is fixed."""
    return all(leaf.whole is not None for leaf in leaves(axis))


def reason(axis: Axis) -> str:
    """Returns why an axis is kept whole: the first reason among its parts."""
    return next((leaf.whole for leaf in leaves(axis) if leaf.whole), "")


def keep(axis: Axis, why: str) -> None:
    """Keeps an axis whole. A reason that it already has stays."""
    for leaf in leaves(axis):
        if leaf.whole is None:
            leaf.whole = why


def tie(a: Axis, b: Axis, why: str = "") -> None:
    """Ties two axes: their positions are kept or pruned together.

    Args:
        a, b: axes of the same size.
        why: the reason to record if the axes must be kept whole.
    """
    a, b = root(a), root(b)
    if a is b:
        return
    if is_whole(a) or is_whole(b):
        fixed, other = (a, b) if is_whole(a) else (b, a)
        keep(other, reason(fixed))
        return
    if a.kind is None and b.kind is None and a.group and b.group:
        keep(a, why)  # groups of a finished graph are never merged
        keep(b, why)
        return
    if a.kind is None and not (a.group and b.kind):
        a.parent = b
        b.group = b.group or a.group
        _inherit(a, b)
    elif b.kind is None and not b.group:
        b.parent = a
        _inherit(b, a)
    elif not (a.kind == b.kind and _aligned(a, b, why)):
        keep(a, why or "its channels are combined in two ways")
        keep(b, why or "its channels are combined in two ways")


def _inherit(child: Axis, parent: Axis) -> None:
    if child.whole is not None:
        keep(parent, child.whole)


def _aligned(a: Axis, b: Axis, why: str) -> bool:
    """Ties the parts of two composite axes of one kind, dividing simple parts where sizes differ.

    Returns:
        Whether the parts could be tied.
    """
    left, right = list(a.parts), list(b.parts)
    pairs: list[tuple[Axis, Axis]] = []
    kind: Kind = a.kind or "product"
    while left and right:
        x, y = root(left.pop(0)), root(right.pop(0))
        if x.size == y.size:
            pairs.append((x, y))
            continue
        swap = x.size > y.size
        small, large = (y, x) if swap else (x, y)
        if large.kind == kind:
            inner = large.parts
        elif large.kind is None and not large.group:
            rest, odd = (
                (large.size - small.size, 0)
                if kind == "concatenation"
                else divmod(large.size, small.size)
            )
            if odd:
                return False
            inner = (Axis(small.size, large.whole), Axis(rest, large.whole))
            large.kind, large.parts, large.whole = kind, inner, None
        else:
            return False
        (left if swap else right)[:0] = inner
        (right if swap else left)[:0] = [small]
    if left or right:
        return False
    for x, y in pairs:
        tie(x, y, why)
    return True


def divided(axis: Axis, kind: Kind, sizes: Sequence[int], why: str) -> list[Axis]:
    """Divides an axis into parts of these sizes, as a concatenation or product; returns them."""
    parts = [Axis(size) for size in sizes]
    tie(axis, made(kind, parts), why)
    return parts


def pieces(axis: Axis) -> list[Axis]:
    """Returns the axes that an axis is a concatenation of; none of them is a concatenation."""
    axis = root(axis)
    if axis.kind != "concatenation":
        return [axis]
    return [piece for part in axis.parts for piece in pieces(part)]
