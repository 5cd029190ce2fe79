"""Builds the operators of an ONNX graph. A transposition is written only where it is needed.

Convolutions of ONNX take (N, C, H, W). The traced functions use (N, H, W, C). A `Value` is an array
of the traced function. It records the order in which its axes are stored in an ONNX tensor. A
transposition changes only this order. A Transpose operator is written if an operator needs another
order. So no Transpose is written between two convolutions. Axes along which an array is constant
are not stored.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from irp_jax.errors import UserError

BATCH = 1_000_003
"""Placeholder for the number of images in shapes: a prime larger than any other size."""

IMAGES, LOGITS = "images", "logits"

MAX_REMAINDER = 10_000
"""Largest |b| of an axis of size a * N + b, where N is the number of images."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """An array of the traced function.

    Attributes:
        shape: the shape, with multiples of `BATCH` for axes that grow with the number of images.
        dtype: NumPy dtype.
        order: axes of the array that the ONNX tensor has, in the order of the tensor. The array is
            constant along all other axes.
        name: name of the ONNX tensor; "" if `data` is given.
        data: the value, with the axes `order`, if it is a constant; None otherwise.
    """

    shape: tuple[int, ...]
    dtype: Any
    order: tuple[int, ...]
    name: str = ""
    data: np.ndarray | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of the ONNX tensor."""
        return tuple(self.shape[axis] for axis in self.order)

    def position(self, axis: int) -> int:
        """Returns the position of an axis in the ONNX tensor."""
        return self.order.index(axis)


def known(data: Any) -> Value:
    """Returns the value of a constant array."""
    data = np.asarray(data)
    return Value(shape=data.shape, dtype=data.dtype, order=tuple(range(data.ndim)), data=data)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """An ONNX operator.

    Attributes:
        op: name of the operator type.
        inputs, outputs: names of tensors.
        attributes: ONNX attributes, name -> value.
        where: name of the layer that it belongs to.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    where: str = ""


class Tensors:
    """The operators and constants written so far.

    Attributes:
        nodes: operators in the order of evaluation.
        constants: name of a tensor -> array.
        shapes: name of a tensor -> shape, see `Value.shape`.
        dtypes: name of a tensor -> dtype.
        where: name of the layer that is being written.
    """

    def __init__(self, input_shape: Sequence[int]) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {IMAGES: tuple(input_shape)}
        self.dtypes: dict[str, Any] = {IMAGES: np.dtype(np.float32)}
        self.where = ""
        self._constant_names: dict[Any, str] = {}
        self._known: dict[Any, tuple[str, ...]] = {}

    # ---- tensors ------------------------------------------------------------------------------

    def constant(self, data: Any) -> str:
        """Returns the name of a constant tensor. Equal arrays share one tensor."""
        data = np.ascontiguousarray(data).reshape(np.shape(data))
        key = (str(data.dtype), data.shape, data.tobytes())
        if key not in self._constant_names:
            name = self._constant_names[key] = f"constant_{len(self._constant_names)}"
            self.constants[name] = data
            self.shapes[name], self.dtypes[name] = data.shape, data.dtype
        return self._constant_names[key]

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        shape: Sequence[int],
        dtype: Any,
        outputs: int = 1,
        **attributes: Any,
    ) -> str:
        """Writes an operator and returns the name of its first output.

        An operator that equals an earlier one is not written again.

        Args:
            op: name of the operator type.
            inputs: names of tensors.
            shape, dtype: shape and dtype of the first output.
            outputs: number of outputs.
            **attributes: ONNX attributes.
        """
        key = (op, tuple(inputs), repr(sorted(attributes.items())), outputs)
        if key not in self._known:
            base = f"{op.lower()}_{len(self.nodes)}"
            names = (base,) if outputs == 1 else tuple(f"{base}_{i}" for i in range(outputs))
            self._known[key] = names
            self.nodes.append(
                Node(op=op, inputs=tuple(inputs), outputs=names, attributes=attributes,
                     where=self.where)
            )  # fmt: skip
            self.shapes[names[0]], self.dtypes[names[0]] = tuple(shape), np.dtype(dtype)
        return self._known[key][0]

    def sizes(self, sizes: Sequence[int]) -> str:
        """Returns the name of an int64 vector of sizes.

        Sizes that depend on the number of images are computed from the shape of the input.
        """
        if all(size < BATCH // 2 for size in sizes):
            return self.constant(np.array(sizes, np.int64))
        parts = []
        for size in sizes:
            times, more = self.of_batch(size)
            part = self.constant(np.array([more], np.int64))
            if times:
                number = self.add("Shape", [IMAGES], shape=(1,), dtype=np.int64, start=0, end=1)
                if times != 1:
                    factor = self.constant(np.array([times], np.int64))
                    number = self._of_sizes("Mul", number, factor)
                part = self._of_sizes("Add", number, part) if more else number
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        return self.add("Concat", parts, axis=0, shape=(len(parts),), dtype=np.int64)

    def _of_sizes(self, op: str, *names: str) -> str:
        return self.add(op, names, shape=(1,), dtype=np.int64)

    def of_batch(self, size: int) -> tuple[int, int]:
        """Returns (a, b) of a size a * N + b, where N is the number of images."""
        times, more = divmod(size, BATCH)
        if more > BATCH // 2:
            times, more = times + 1, more - BATCH
        if abs(more) > MAX_REMAINDER:
            raise self.refusal("an axis whose size is not a multiple of the number of images")
        return times, more

    def refusal(self, what: str) -> UserError:
        """Returns the error for what has no counterpart in ONNX. It names the layer."""
        return UserError(
            f"the network cannot be written as ONNX: {what}, in {self.where or 'the network'}; "
            f"--format=stablehlo has no such limit"
        )

    # ---- values -------------------------------------------------------------------------------

    def laid_out(self, value: Value, order: Sequence[int]) -> str:
        """Returns the name of a tensor that has the axes of a value in this order.

        Axes that the tensor of the value does not have get size 1.

        Args:
            value: the value.
            order: all axes of the tensor of the value, and others. The tensor lacks other axes that
                come before the first of its own, because ONNX adds leading axes in broadcasting.
        """
        own = [axis for axis in order if axis in value.order]
        begin = order.index(own[0]) if own else len(order)
        rest = order[begin:]
        turn = [value.position(axis) for axis in own]
        if value.data is not None:
            sizes = [value.shape[axis] if axis in own else 1 for axis in rest]
            return self.constant(value.data.transpose(turn).reshape(sizes))
        name = value.name
        if turn != sorted(turn):
            shape = [value.shape[axis] for axis in own]
            name = self.add("Transpose", [name], perm=turn, shape=shape, dtype=value.dtype)
        missing = [place for place, axis in enumerate(rest) if axis not in own]
        return self._unsqueezed(name, missing, value.dtype)

    def _unsqueezed(self, name: str, places: Sequence[int], dtype: Any) -> str:
        if not places:
            return name
        shape = list(self.shapes[name])
        for place in places:
            shape.insert(place, 1)
        axes = self.constant(np.array(places, np.int64))
        return self.add("Unsqueeze", [name, axes], shape=shape, dtype=dtype)

    def whole(self, value: Value, order: Sequence[int] | None = None) -> Value:
        """Returns the value with all its axes stored in the tensor.

        Args:
            value: the value.
            order: order of the axes; None for the present order, followed by the missing axes.
        """
        if order is None:
            missing = (axis for axis in range(len(value.shape)) if axis not in value.order)
            order = (*value.order, *missing)
        order = tuple(order)
        if value.order == order:
            return value
        name = self.laid_out(value, order)
        before = len(order) - len(self.shapes[name])
        shape = [value.shape[axis] for axis in order]
        if any(value.shape[axis] != 1 and axis not in value.order for axis in order):
            name = self.add("Expand", [name, self.sizes(shape)], shape=shape, dtype=value.dtype)
        else:
            name = self._unsqueezed(name, range(before), value.dtype)
        return Value(shape=value.shape, dtype=value.dtype, order=order, name=name)

    def tensor(self, value: Value) -> str:
        """Returns the name of the tensor of a value, in its present order."""
        return value.name if value.data is None else self.constant(value.data)

    def stored(
        self, op: str, inputs: Sequence[str], shape: Sequence[int], dtype: Any,
        order: Sequence[int], **attributes: Any,
    ) -> Value:  # fmt: skip
        """Writes an operator and returns its first output as a value.

        Args:
            op, inputs, **attributes: see `add`.
            shape, dtype, order: see `Value`.
        """
        sizes = [shape[axis] for axis in order]
        name = self.add(op, inputs, shape=sizes, dtype=dtype, **attributes)
        return Value(shape=tuple(shape), dtype=np.dtype(dtype), order=tuple(order), name=name)

    def apply(self, op: str, *values: Value, dtype: Any = None, **attributes: Any) -> Value:
        """Writes an elementwise operator and returns its output.

        Args:
            op: name of the operator type.
            *values: inputs of equal shape, or scalars.
            dtype: dtype of the output; None for the dtype of the last input.
            **attributes: ONNX attributes.
        """
        shape = max((value.shape for value in values), key=len)
        longest = max((len(value.order) for value in values if value.data is None), default=0)
        order: list[int] = []
        for value in values:
            if value.data is None and len(value.order) == longest and not order:
                order = list(value.order)
        for value in values:
            order += sorted(axis for axis in value.order if axis not in order)
        names = [self.laid_out(value, order) for value in values]
        return self.stored(op, names, shape, dtype or values[-1].dtype, order, **attributes)


def reshaped(value: Value, shape: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Returns how to reshape a value without a transposition.

    The axes of both shapes fall into groups of equal size. A group is an axis that is split, axes
    that are joined, or an axis that stays. No transposition is needed if the axes of each group are
    adjacent and in order in the tensor.

    Args:
        value: the value.
        shape: the new shape.

    Returns:
        (shape of the new tensor, its order); None if a transposition is needed.
    """
    order: list[int] = []
    groups = _groups(value.shape, shape)
    if groups is None:
        return None
    starts: dict[int, list[int]] = {}
    for before, after in groups:
        held = [axis for axis in before if value.shape[axis] != 1]
        new = [axis for axis in after if shape[axis] != 1]
        if not held:
            continue
        if not set(held) & set(value.order):
            if len(held) == len(new) == 1:
                continue  # the array is constant along this axis, before and after
            return None
        if not set(held) <= set(value.order):
            return None
        place = value.position(held[0])
        lying = [axis for axis in value.order[place:] if value.shape[axis] != 1][: len(held)]
        if lying != held:
            return None
        starts[held[0]] = new
    for axis in value.order:
        order += starts.get(axis, [])
    return [shape[axis] for axis in order], order


def _groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]] | None:
    """Returns the smallest groups of axes, in order, that have equal sizes in both shapes."""
    groups = []
    one, other = list(range(len(before))), list(range(len(after)))
    while one or other:
        left: list[int] = []
        right: list[int] = []
        while True:
            a, b = math.prod(before[i] for i in left), math.prod(after[i] for i in right)
            if left and right and a == b:
                break
            if (a <= b or not other) and one:
                left.append(one.pop(0))
            elif other:
                right.append(other.pop(0))
            elif a == b:
                break
            else:
                return None
        groups.append((left, right))
    return groups
