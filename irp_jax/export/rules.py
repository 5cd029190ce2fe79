"""The rules that write JAX operations as ONNX operators, one for each primitive.

A rule takes the tensors written so far, the operation and its inputs. It returns the outputs. It
writes standard operators of opset 17 only. An operation without a rule is an error that names it.
"""

import dataclasses
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from irp_jax.export.tensors import BATCH, IMAGES, Tensors, Value, known, reshaped


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """An equation of the traced function, with `BATCH` for the number of images.

    Attributes:
        name: name of the primitive.
        params: parameters of the primitive. Sizes in them may be symbolic; see `size`.
        shapes, dtypes: shapes and dtypes of the outputs.
    """

    name: str
    params: dict[str, Any]
    shapes: list[tuple[int, ...]]
    dtypes: list[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.shapes[0]

    @property
    def dtype(self) -> Any:
        """Dtype of the first output."""
        return self.dtypes[0]


def size(dimension: Any) -> int:
    """Returns a size as an integer, with `BATCH` for the number of images."""
    if isinstance(dimension, int | np.integer):
        return int(dimension)
    return int(dimension._evaluate({"n": BATCH}))  # JAX has no public function for this


def sizes(dimensions: Sequence[Any]) -> tuple[int, ...]:
    """Returns sizes as integers; see `size`."""
    return tuple(map(size, dimensions))


Rule = Callable[[Tensors, Operation, list[Value]], list[Value]]


# ---- element by element ------------------------------------------------------------------------

SAME = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "add": "Add", "add_any": "Add",
    "asin": "Asin", "asinh": "Asinh", "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil",
    "cos": "Cos", "cosh": "Cosh", "div": "Div", "erf": "Erf", "exp": "Exp", "floor": "Floor",
    "log": "Log", "logistic": "Sigmoid", "mul": "Mul", "neg": "Neg", "sign": "Sign", "sin": "Sin",
    "sinh": "Sinh", "sqrt": "Sqrt", "sub": "Sub", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
"""Primitives that have an equal operator, and its name."""

COMPARISONS = {
    "eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less",
}  # fmt: skip

LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}

IDENTITY = (
    "copy", "copy_p", "name", "optimization_barrier", "sharding_constraint", "stop_gradient",
)  # fmt: skip
"""Primitives that do not change values. They are for the compiler or for gradients."""


def same(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply(SAME[op.name], *inputs)]


def comparison(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply(COMPARISONS[op.name], *inputs, dtype=bool)]


def not_equal(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Not", t.apply("Equal", *inputs, dtype=bool))]


def logic(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    if op.dtype != bool:
        raise t.refusal(f"{op.name} of integers")
    return [t.apply(LOGIC[op.name], *inputs)]


def negation(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    if op.dtype != bool:
        raise t.refusal(f"{op.name} of integers")
    return [t.apply("Not", *inputs)]


def identity(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return inputs


def number(value: Value, like: float) -> Value:
    """Returns a constant scalar with the dtype of a value."""
    return known(np.asarray(like, value.dtype))


def is_number(value: Value, what: float) -> bool:
    """Returns whether a value is a constant whose elements all equal a number."""
    return value.data is not None and bool(np.all(value.data == what))


def maximum(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    for one, other in (inputs, inputs[::-1]):
        if is_number(other, -np.inf) and one.shape == op.shape:
            return [one]
        if is_number(other, 0) and one.shape == op.shape and np.issubdtype(op.dtype, np.floating):
            return [t.apply("Relu", one)]
    return [t.apply("Max", *inputs)]


def minimum(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Min", *inputs)]


def clamp(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    low, value, high = inputs
    return [t.apply("Min", t.apply("Max", value, low), high)]


def rsqrt(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Reciprocal", t.apply("Sqrt", *inputs))]


def square(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Mul", inputs[0], inputs[0])]


def integer_pow(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    (x,), power = inputs, op.params["y"]
    if power == 2:
        return square(t, op, inputs)
    if power == 3:
        return [t.apply("Mul", t.apply("Mul", x, x), x)]
    return [t.apply("Pow", x, number(x, power))]


def power(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Pow", *inputs, dtype=op.dtype)]


def exp2(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Pow", number(inputs[0], 2), inputs[0])]


def expm1(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    """Writes 2 sinh(x/2) exp(x/2), which is accurate for small x."""
    (x,) = inputs
    half = t.apply("Mul", x, number(x, 0.5))
    product = t.apply("Mul", t.apply("Sinh", half), t.apply("Exp", half))
    return [t.apply("Mul", product, number(x, 2))]


def log1p(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Log", t.apply("Add", inputs[0], number(inputs[0], 1)))]


def erfc(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Sub", number(inputs[0], 1), t.apply("Erf", inputs[0]))]


def cbrt(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    (x,) = inputs
    root = t.apply("Pow", t.apply("Abs", x), number(x, 1 / 3))
    return [t.apply("Mul", t.apply("Sign", x), root)]


def remainder(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [t.apply("Mod", *inputs, fmod=1)]


def rounded(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    """Writes rounding. Round of ONNX takes halves to even, so other rounding uses Floor."""
    (x,) = inputs
    if int(op.params["rounding_method"]) == 1:
        return [t.apply("Round", x)]
    up = t.apply("Floor", t.apply("Add", t.apply("Abs", x), number(x, 0.5)))
    return [t.apply("Mul", t.apply("Sign", x), up)]


def is_finite(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    infinite, none = (t.apply(name, *inputs, dtype=bool) for name in ("IsInf", "IsNaN"))
    return [t.apply("Not", t.apply("Or", infinite, none))]


def select(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    which, *cases = inputs
    if len(cases) != 2 or which.dtype != bool:
        raise t.refusal("select_n with more than two cases")
    for chosen in (0, 1):
        if is_number(which, chosen) and cases[chosen].shape == op.shape:
            return [cases[chosen]]
    return [t.apply("Where", which, cases[1], cases[0])]


def cast(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [_cast(t, inputs[0], op.dtype)]


def _cast(t: Tensors, value: Value, dtype: Any) -> Value:
    if value.dtype == dtype:
        return value
    return t.apply("Cast", value, dtype=dtype, to=code(t, dtype))


def code(t: Tensors, dtype: Any) -> int:
    """Returns the number of a dtype in ONNX."""
    import onnx

    try:
        found = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except (KeyError, ValueError, TypeError):
        found = None
    if found is None or str(dtype) == "bfloat16":
        raise t.refusal(f"the dtype {dtype}, which few runtimes support")
    return found


def reduce_precision(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    digits = np.finfo(op.dtype)
    if (op.params["exponent_bits"], op.params["mantissa_bits"]) != (digits.iexp, digits.nmant):
        raise t.refusal(op.name)
    return inputs


# ---- axes ----------------------------------------------------------------------------------------


def transpose(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    (x,), permutation = inputs, list(op.params["permutation"])
    order = tuple(permutation.index(axis) for axis in x.order)
    return [dataclasses.replace(x, shape=op.shape, order=order)]


def broadcast(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    x, where = inputs[0], op.params["broadcast_dimensions"]
    grown = [axis for axis in x.order if x.shape[axis] != op.shape[where[axis]]]
    x = _without(t, x, grown)
    return [dataclasses.replace(x, shape=op.shape, order=tuple(where[axis] for axis in x.order))]


def _without(t: Tensors, x: Value, axes: Sequence[int]) -> Value:
    """Removes axes of size 1 from the tensor of a value."""
    held = [axis for axis in x.order if axis in axes]
    if not held:
        return x
    order = tuple(axis for axis in x.order if axis not in held)
    stands = [x.position(axis) for axis in held]
    if x.data is not None:
        return dataclasses.replace(x, order=order, data=x.data.squeeze(tuple(stands)))
    places = t.constant(np.array(stands, np.int64))
    return t.stored("Squeeze", [x.name, places], x.shape, x.dtype, order)


def squeeze(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    x, gone = inputs[0], [axis % len(inputs[0].shape) for axis in op.params["dimensions"]]
    x = _without(t, x, gone)
    left = [axis for axis in range(len(x.shape)) if axis not in gone]
    return [
        dataclasses.replace(
            x, shape=op.shape, order=tuple(left.index(axis) for axis in x.order)
        )
    ]  # fmt: skip


def expand_dims(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    x, rank = inputs[0], len(op.shape)
    new = [axis % rank for axis in op.params["dimensions"]]
    old = [axis for axis in range(rank) if axis not in new]
    return [dataclasses.replace(x, shape=op.shape, order=tuple(old[axis] for axis in x.order))]


def reshape(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    if op.params["dimensions"] is not None:
        raise t.refusal("reshape that transposes")
    x = inputs[0]
    found = reshaped(x, op.shape)
    if found is None:
        x = t.whole(x, range(len(x.shape)))
        found = reshaped(x, op.shape)
    assert found is not None, "if the axes are in order, no transposition is needed"
    shape, order = found
    if x.data is not None:
        return [
            dataclasses.replace(x, shape=op.shape, order=tuple(order), data=x.data.reshape(shape))
        ]
    if tuple(shape) == x.stored:
        return [dataclasses.replace(x, shape=op.shape, order=tuple(order))]
    return [t.stored("Reshape", [x.name, _new_sizes(t, shape)], op.shape, x.dtype, order)]


def _new_sizes(t: Tensors, shape: Sequence[int]) -> str:
    """Returns the name of the shape input of a Reshape, which can infer one size."""
    growing = [place for place, length in enumerate(shape) if length > BATCH // 2]
    if len(growing) != 1:
        return t.sizes(shape)
    return t.constant(np.array([-1 if i in growing else s for i, s in enumerate(shape)], np.int64))


def slice_(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    starts, limits = sizes(op.params["start_indices"]), sizes(op.params["limit_indices"])
    strides = op.params["strides"] or (1,) * len(starts)
    return [_sliced(t, inputs[0], starts, limits, strides, op.shape)]


def _sliced(
    t: Tensors, x: Value, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int],
    shape: Sequence[int],
) -> Value:  # fmt: skip
    """Slices a value. Axes that its tensor does not have need no operator."""
    cut = [
        axis for axis in x.order
        if (starts[axis], limits[axis], strides[axis]) != (0, x.shape[axis], 1)
    ]  # fmt: skip
    if not cut:
        return dataclasses.replace(x, shape=tuple(shape))
    begin = t.sizes([starts[axis] for axis in cut])
    end = t.sizes([limits[axis] for axis in cut])
    where = t.constant(np.array([x.position(axis) for axis in cut], np.int64))
    steps = t.constant(np.array([strides[axis] for axis in cut], np.int64))
    return t.stored("Slice", [t.tensor(x), begin, end, where, steps], shape, x.dtype, x.order)


def rev(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    (x,) = inputs
    turned = [axis for axis in op.params["dimensions"] if axis in x.order]
    if not turned:
        return [x]
    least = np.iinfo(np.int64).min
    columns = [[-1, least, x.position(axis), -1] for axis in turned]
    begin, end, where, steps = (
        t.constant(np.array(c, np.int64)) for c in zip(*columns, strict=True)
    )
    return [t.stored("Slice", [t.tensor(x), begin, end, where, steps], x.shape, x.dtype, x.order)]


def split(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    (x,), axis, begin, out = inputs, op.params["axis"], 0, []
    for shape in op.shapes:
        starts = [begin if i == axis else 0 for i in range(len(shape))]
        limits = [a + b for a, b in zip(starts, shape, strict=True)]
        out.append(_sliced(t, x, starts, limits, [1] * len(shape), shape))
        begin += shape[axis]
    return out


def concatenate(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    return [_joined(t, inputs, op.params["dimension"], op)]


def _joined(t: Tensors, inputs: list[Value], axis: int, op: Operation) -> Value:
    open_ = [value for value in inputs if value.data is None]
    order = t.whole(max(open_ or inputs, key=lambda value: len(value.order))).order
    names = [t.tensor(t.whole(value, order)) for value in inputs]
    return t.stored("Concat", names, op.shape, op.dtype, order, axis=order.index(axis))


def stack(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    axis = op.params["axis"] % len(op.shape)
    old = [i for i in range(len(op.shape)) if i != axis]
    shape = tuple(1 if i == axis else length for i, length in enumerate(op.shape))
    grown = [
        dataclasses.replace(x, shape=shape, order=tuple(old[i] for i in x.order)) for x in inputs
    ]
    return [_joined(t, grown, axis, op)]


def unstack(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    (x,), out = inputs, []
    axis = op.params["axis"] % len(x.shape)
    left = [i for i in range(len(x.shape)) if i != axis]
    for index, shape in enumerate(op.shapes):
        starts = [index if i == axis else 0 for i in range(len(x.shape))]
        limits = [index + 1 if i == axis else length for i, length in enumerate(x.shape)]
        one = tuple(1 if i == axis else length for i, length in enumerate(x.shape))
        piece = _without(t, _sliced(t, x, starts, limits, [1] * len(one), one), [axis])
        order = tuple(left.index(i) for i in piece.order)
        out.append(dataclasses.replace(piece, shape=shape, order=order))
    return out


def tile(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    (x,), often = inputs, sizes(op.params["reps"])
    x = _without(t, x, [axis for axis in x.order if x.shape[axis] == 1 and often[axis] != 1])
    if all(often[axis] == 1 for axis in x.order) and all(
        x.shape[axis] == 1 or often[axis] == 1 for axis in range(len(often))
    ):
        return [dataclasses.replace(x, shape=op.shape)]
    x = t.whole(x)
    repeats = t.sizes([often[axis] for axis in x.order])
    return [t.stored("Tile", [t.tensor(x), repeats], op.shape, x.dtype, x.order)]


def pad(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    x, filling = inputs
    config = [sizes(each) for each in op.params["padding_config"]]
    if any(interior for _, _, interior in config):
        raise t.refusal("pad with interior padding")
    if all(low == high == 0 for low, high, _ in config):
        return [x]
    x = t.whole(x)
    amounts = [config[axis][end] for end in (0, 1) for axis in x.order]
    names = [t.tensor(x), t.constant(np.array(amounts, np.int64)), t.tensor(filling)]
    return [t.stored("Pad", names, op.shape, x.dtype, x.order, mode="constant")]


def iota(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    along = op.params["dimension"]
    if op.shape[along] > BATCH // 2:
        raise t.refusal("iota over the images")
    data = np.arange(op.shape[along]).astype(op.dtype)
    return [Value(shape=op.shape, dtype=op.dtype, order=(along,), data=data)]


def dynamic_slice(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    x, *starts = inputs
    if any(start.data is None for start in starts):
        raise t.refusal("dynamic_slice from a computed index")
    room = [length - out for length, out in zip(x.shape, op.shape, strict=True)]
    begin = [
        min(max(int(start.data), 0), most)  # type: ignore[arg-type]
        for start, most in zip(starts, room, strict=True)
    ]
    limits = [a + b for a, b in zip(begin, op.shape, strict=True)]
    return [_sliced(t, x, begin, limits, [1] * len(begin), op.shape)]


def gather(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    """Writes indexing with constant indices: lists of integers, and strides."""
    x, which = inputs
    numbers, taken = op.params["dimension_numbers"], sizes(op.params["slice_sizes"])
    along = numbers.start_index_map
    single = {axis for axis, length in enumerate(taken) if length != x.shape[axis]}
    if (
        which.data is None
        or set(numbers.collapsed_slice_dims) != set(along)
        or not single <= set(along)
        or bool(getattr(numbers, "operand_batching_dims", None))
    ):
        raise t.refusal("gather with computed indices or slices of this shape")
    rows = full(which).astype(np.int64)
    last = np.array([x.shape[axis] - 1 for axis in along])
    if "fill" in str(op.params["mode"]).lower() and not ((rows >= 0) & (rows <= last)).all():
        raise t.refusal("gather with an index out of range")
    rows = np.clip(rows, 0, last)
    x = t.whole(x)
    # Axes of the output: those of the indices, and the other axes of x, both in order.
    others = [i for i in range(len(op.shape)) if i not in numbers.offset_dims]
    left = [i for i in range(len(x.shape)) if i not in along]
    place = {i: [j] for i, j in zip(left, numbers.offset_dims, strict=True)}
    if len(along) == 1:
        place[along[0]], lists = others, [rows[..., 0]]
    else:
        grid = range(len(along))
        lists = [rows[tuple(slice(None) if i == j else 0 for i in grid)][:, j] for j in grid]
        if rows.ndim != len(along) + 1 or not np.array_equal(
            rows, np.stack(np.meshgrid(*lists, indexing="ij"), -1)
        ):
            raise t.refusal("gather with indices that are not a grid")
        place |= {axis: [others[j]] for j, axis in enumerate(along)}
    # From the last axis of the tensor to the first, so that positions of earlier axes stay valid.
    name, shape = t.tensor(x), list(x.stored)
    for axis, line in sorted(zip(along, lists, strict=True), key=lambda pair: -x.position(pair[0])):
        stand = x.position(axis)
        shape[stand : stand + 1] = line.shape
        names = [name, t.constant(line)]
        name = t.add("Gather", names, shape=shape, dtype=x.dtype, axis=stand)
    order = tuple(j for i in x.order for j in place[i])
    return [Value(shape=op.shape, dtype=x.dtype, order=order, name=name)]


def full(value: Value) -> np.ndarray:
    """Returns the array of a constant, with all axes in order."""
    assert value.data is not None
    turn = sorted(range(len(value.order)), key=value.order.__getitem__)
    lengths = [length if axis in value.order else 1 for axis, length in enumerate(value.shape)]
    return np.broadcast_to(value.data.transpose(turn).reshape(lengths), value.shape)


def dimension(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    """Writes the value of a size that depends on the number of images."""
    times, more = t.of_batch(size(op.params["dim"]))
    vector = t.add("Shape", [IMAGES], start=0, end=1, shape=(1,), dtype=np.int64)
    value = Value(shape=(1,), dtype=np.dtype(np.int64), order=(0,), name=vector)
    value = _without(t, value, [0])
    value = dataclasses.replace(value, shape=())
    value = t.apply("Mul", value, number(value, times)) if times != 1 else value
    value = t.apply("Add", value, number(value, more)) if more else value
    return [_cast(t, value, op.dtype)]


# ---- along axes ----------------------------------------------------------------------------------

REDUCTIONS = {
    "reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum", "reduce_and": "ReduceMin", "reduce_or": "ReduceMax",
}  # fmt: skip


def reduction(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    x, axes = inputs[0], op.params["axes"]
    if op.name in ("reduce_sum", "reduce_prod") and any(
        axis not in x.order and x.shape[axis] != 1 for axis in axes
    ):
        x = t.whole(x)
    if x.dtype == bool:
        x = _cast(t, x, np.dtype(np.int32))
    return [_cast(t, _reduced(t, REDUCTIONS[op.name], x, axes, op.shape), op.dtype)]


def _reduced(t: Tensors, name: str, x: Value, axes: Sequence[int], shape: tuple[int, ...]) -> Value:
    left = [axis for axis in range(len(x.shape)) if axis not in axes]
    order = tuple(left.index(axis) for axis in x.order if axis in left)
    held = sorted(x.position(axis) for axis in axes if axis in x.order)
    if not held:
        return dataclasses.replace(x, shape=shape, order=order)
    if name == "ReduceSum":
        where = t.constant(np.array(held, np.int64))
        return t.stored(name, [t.tensor(x), where], shape, x.dtype, order, keepdims=0)
    return t.stored(name, [t.tensor(x)], shape, x.dtype, order, axes=held, keepdims=0)


ARGUMENTS = {"argmax": "ArgMax", "argmin": "ArgMin"}


def argument(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    (x,), (axis,) = inputs, op.params["axes"]
    x = t.whole(x)
    left = [i for i in range(len(x.shape)) if i != axis]
    order = [left.index(i) for i in x.order if i != axis]
    found = t.stored(
        ARGUMENTS[op.name], [t.tensor(x)], op.shape, np.int64, order,
        axis=x.position(axis), keepdims=0,
    )  # fmt: skip
    return [_cast(t, found, op.dtype)]


def cumulative_sum(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    x = t.whole(inputs[0])
    axis = t.constant(np.array(x.position(op.params["axis"]), np.int64))
    backwards = int(op.params["reverse"])
    return [
        t.stored("CumSum", [t.tensor(x), axis], x.shape, x.dtype, x.order, reverse=backwards)
    ]  # fmt: skip


def sort(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    axis = op.params["dimension"]
    if len(inputs) != 1 or inputs[0].shape[axis] > BATCH // 2:
        raise t.refusal("sort of several arrays, or over the images")
    x = t.whole(inputs[0])
    count = t.constant(np.array([x.shape[axis]], np.int64))
    names = [t.tensor(x), count]
    return [
        t.stored(
            "TopK", names, x.shape, x.dtype, x.order, axis=x.position(axis), largest=0, sorted=1,
            outputs=2,
        )
    ]  # fmt: skip


WINDOWS = {"reduce_window_max": "MaxPool", "reduce_window_sum": "AveragePool"}


def window(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    """Writes pooling. Two axes, along which the window has size 1, are not pooled."""
    x, params = inputs[0], op.params
    spans, steps = params["window_dimensions"], params["window_strides"]
    pads, apart = params["padding"], params["window_dilation"]
    still = [
        axis for axis in range(len(spans))
        if (spans[axis], steps[axis], tuple(pads[axis])) == (1, 1, (0, 0))
    ]  # fmt: skip
    if set(params["base_dilation"]) != {1} or len(still) < 2:
        raise t.refusal(op.name)
    if op.name == "reduce_window_sum" and set(apart) != {1}:
        raise t.refusal("a dilated sum over windows")
    first = [axis for axis in x.order if axis in still] + [a for a in still if a not in x.order]
    first = first[:2]
    moving = [axis for axis in range(len(spans)) if axis not in first]
    order = (*first, *moving)
    attributes: dict[str, Any] = {
        "kernel_shape": [spans[axis] for axis in moving],
        "strides": [steps[axis] for axis in moving],
        "pads": [pads[axis][end] for end in (0, 1) for axis in moving],
    }
    if op.name == "reduce_window_max":
        attributes["dilations"] = [apart[axis] for axis in moving]
    else:
        attributes["count_include_pad"] = 1
    names = [t.tensor(t.whole(x, order))]
    pooled = t.stored(WINDOWS[op.name], names, op.shape, x.dtype, order, **attributes)
    if op.name == "reduce_window_max":
        return [pooled]
    return [t.apply("Mul", pooled, number(pooled, math.prod(spans)))]


# ---- contractions --------------------------------------------------------------------------------


def convolution(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    params, numbers = op.params, op.params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        raise t.refusal("a convolution with batch_group_count")
    x, kernel = t.whole(inputs[0], numbers.lhs_spec), t.whole(inputs[1], numbers.rhs_spec)
    taps = [kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
    strides, apart = params["window_strides"], params["rhs_dilation"]
    low, high = zip(*(sizes(pair) for pair in params["padding"]), strict=True)
    spread = params["lhs_dilation"]
    attributes = {"kernel_shape": taps, "dilations": list(apart),
                  "group": params["feature_group_count"]}  # fmt: skip
    if set(spread) <= {1}:
        if min(low + high) < 0:
            raise t.refusal("a convolution with negative padding")
        names = [t.tensor(x), t.tensor(kernel)]
        attributes |= {"strides": list(strides), "pads": [*low, *high]}
        name = "Conv"
    else:
        # Input dilation: a transposed convolution with a flipped kernel.
        reach = [a * (k - 1) for a, k in zip(apart, taps, strict=True)]
        before = [r - lo for r, lo in zip(reach, low, strict=True)]
        after = [r - hi for r, hi in zip(reach, high, strict=True)]
        if set(strides) != {1} or min(before) < 0 or params["feature_group_count"] != 1:
            raise t.refusal("a transposed convolution with strides, groups or this padding")
        if kernel.data is None and inputs[1].data is None:
            raise t.refusal("a transposed convolution with a computed kernel")
        data = t.constants[t.laid_out(inputs[1], numbers.rhs_spec)]
        data = np.flip(data, tuple(range(2, data.ndim))).swapaxes(0, 1)
        names = [t.tensor(x), t.constant(data)]
        attributes |= {
            "strides": list(spread),
            "pads": [*before, *(max(each, 0) for each in after)],
            "output_padding": [max(-each, 0) for each in after],
        }
        name = "ConvTranspose"
    made = t.stored(name, names, op.shape, x.dtype, numbers.out_spec, **attributes)
    return [_cast(t, made, op.dtype)]


def contraction(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    """Writes MatMul if one operand is a constant matrix, else Einsum."""
    (over_left, over_right), (among_left, among_right) = op.params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    sides: list[list[str]] = [[""] * len(value.shape) for value in inputs]
    shared: list[str] = []
    joined: list[str] = []
    for along, pairs in ((shared, zip(among_left, among_right, strict=True)),
                         (joined, zip(over_left, over_right, strict=True))):  # fmt: skip
        for i, j in pairs:
            letter = next(letters)
            sides[0][i] = sides[1][j] = letter
            along.append(letter)
    for side in sides:
        side[:] = [letter or next(letters) for letter in side]
    free = [letter for side in sides for letter in side if letter not in shared + joined]
    out = shared + free
    for matrix, x, own, other in (
        (inputs[1], inputs[0], sides[1], sides[0]), (inputs[0], inputs[1], sides[0], sides[1]),
    ):  # fmt: skip
        if matrix.data is None or len(own) != 2 or len(joined) != 1 or shared or x.data is not None:
            continue
        x = t.whole(x)
        last = other.index(joined[0])
        order = [axis for axis in x.order if axis != last] + [last]
        kernel = t.whole(matrix, (own.index(joined[0]), 1 - own.index(joined[0])))
        made = [other[axis] for axis in order[:-1]] + [own[1 - own.index(joined[0])]]
        names = [t.tensor(t.whole(x, order)), t.tensor(kernel)]
        places = [out.index(letter) for letter in made]
        return [_cast(t, t.stored("MatMul", names, op.shape, x.dtype, places), op.dtype)]
    whole = [t.whole(value) for value in inputs]
    written = [
        "".join(side[axis] for axis in value.order)
        for side, value in zip(sides, whole, strict=True)
    ]
    equation = f"{','.join(written)}->{''.join(out)}"
    names = [t.tensor(value) for value in whole]
    axes, dtype = range(len(out)), whole[0].dtype
    total = t.stored("Einsum", names, op.shape, dtype, axes, equation=equation)
    return [_cast(t, total, op.dtype)]


FREE: dict[str, Rule] = {
    **dict.fromkeys(IDENTITY, identity),
    "broadcast_in_dim": broadcast,
    "expand_dims": expand_dims,
    "iota": iota,
    "squeeze": squeeze,
    "transpose": transpose,
}
"""Rules that write no operator if the input is a constant."""

ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys(SAME, same),
    **dict.fromkeys(COMPARISONS, comparison),
    **dict.fromkeys(LOGIC, logic),
    "cbrt": cbrt,
    "clamp": clamp,
    "convert_element_type": cast,
    "erfc": erfc,
    "exp2": exp2,
    "expm1": expm1,
    "integer_pow": integer_pow,
    "is_finite": is_finite,
    "log1p": log1p,
    "max": maximum,
    "min": minimum,
    "ne": not_equal,
    "not": negation,
    "pow": power,
    "reduce_precision": reduce_precision,
    "rem": remainder,
    "round": rounded,
    "rsqrt": rsqrt,
    "select_n": select,
    "square": square,
}
"""Rules of elementwise operations."""

RULES: dict[str, Rule] = {
    **FREE,
    **ELEMENTWISE,
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(ARGUMENTS, argument),
    **dict.fromkeys(WINDOWS, window),
    "concatenate": concatenate,
    "conv_general_dilated": convolution,
    "cumsum": cumulative_sum,
    "dim_as_value": dimension,
    "dot_general": contraction,
    "dynamic_slice": dynamic_slice,
    "gather": gather,
    "pad": pad,
    "reshape": reshape,
    "rev": rev,
    "slice": slice_,
    "sort": sort,
    "split": split,
    "stack": stack,
    "tile": tile,
    "unstack": unstack,
}
"""Primitive -> rule. `export.onnx` writes calls, loops and branches."""
