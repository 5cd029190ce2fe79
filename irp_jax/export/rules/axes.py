"""Rules of operations that move, join, split or select along axes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from irp_jax.export.rules.elementwise import cast_to, number
from irp_jax.export.rules.operation import Operation, size, sizes
from irp_jax.export.tensors import BATCH, IMAGES, Tensors, Value, reshaped


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
    return [cast_to(t, value, op.dtype)]
