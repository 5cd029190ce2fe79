"""Axes of arrays, and which of them must have the same size: a union-find with structure.

An axis is simple, or made of others: their concatenation, one after the other, or their row-major
product, as in a flattened feature map. Tying two axes says that position i of one goes with
position i of the other. Tying a simple axis to a made one makes the first of the same parts, also
where it was used before. What cannot be tied part by part is kept whole: sizes then never change,
which is always right.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Kind = Literal["concatenation", "product"]

BATCH = "(batch)"
"""Stands for a group's name where an axis counts images."""


class Axis:
    """An axis of one or more arrays. Compare by `root`.

    Attributes:
        size: of the dense network.
        whole: why it keeps its size; None while it may shrink.
        group: the channel group that it is, once that is known.
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
    """The axis that stands for all that it is tied to."""
    while axis.parent is not None:
        axis = axis.parent
    return axis


def made(kind: Kind, parts: Sequence[Axis]) -> Axis:
    """The concatenation or product of axes; of one axis, that axis."""
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
    """The simple axes it is made of."""
    axis = root(axis)
    if axis.kind is None:
        return [axis]
    return [leaf for part in axis.parts for leaf in leaves(part)]


def is_whole(axis: Axis) -> bool:
    """Whether its size is fixed."""
    return all(leaf.whole is not None for leaf in leaves(axis))


def reason(axis: Axis) -> str:
    """Why it is kept whole: the first of its parts' reasons."""
    return next((leaf.whole for leaf in leaves(axis) if leaf.whole), "")


def keep(axis: Axis, why: str) -> None:
    """Keeps an axis whole; the first reason given stays."""
    for leaf in leaves(axis):
        if leaf.whole is None:
            leaf.whole = why


def tie(a: Axis, b: Axis, why: str = "") -> None:
    """Says that two axes live and die together.

    Args:
        a, b: of the same size.
        why: the reason, should they have to be kept whole.
    """
    a, b = root(a), root(b)
    if a is b:
        return
    if is_whole(a) or is_whole(b):
        fixed, other = (a, b) if is_whole(a) else (b, a)
        keep(other, reason(fixed))
        return
    if a.kind is None and b.kind is None and a.group and b.group:
        keep(a, why)  # two groups of a finished graph are never one
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
    """Ties the parts of two axes made alike, dividing simple parts where that is needed."""
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
    """An axis as a concatenation or product of parts with these sizes."""
    parts = [Axis(size) for size in sizes]
    tie(axis, made(kind, parts), why)
    return parts


def pieces(axis: Axis) -> list[Axis]:
    """What an axis is the concatenation of, down to axes that are none."""
    axis = root(axis)
    if axis.kind != "concatenation":
        return [axis]
    return [piece for part in axis.parts for piece in pieces(part)]
