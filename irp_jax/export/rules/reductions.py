"""Rules of operations that combine elements along axes: sums, sorts, pooling."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from irp_jax.export.rules.elementwise import cast_to, number
from irp_jax.export.rules.operation import Operation
from irp_jax.export.tensors import BATCH, Tensors, Value

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
        x = cast_to(t, x, np.dtype(np.int32))
    return [cast_to(t, _reduced(t, REDUCTIONS[op.name], x, axes, op.shape), op.dtype)]


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
    return [cast_to(t, found, op.dtype)]


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
