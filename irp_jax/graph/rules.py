"""The rules of the axis analysis, one for each JAX primitive.

A rule gets the axes of the inputs. It ties axes that must shrink together, keeps axes whole that
the operation computes across, and returns the axes of the outputs. An operation without a rule
keeps all its axes whole. The network is then pruned less, but never wrongly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from irp_jax.graph.axes import Axis, divided, is_whole, keep, made, reason, tie

Axes = tuple[Axis, ...]

POSITIONS = "positions in the image"
"""The reason why an axis that a window moves along is kept whole."""

ELEMENTWISE = frozenset(
    {
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2",
        "atanh", "bessel_i0e", "bessel_i1e", "bitcast_convert_type", "cbrt", "ceil", "clamp",
        "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq",
        "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
        "igammac", "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p",
        "logistic", "lt", "max", "min", "mul", "name", "ne", "neg", "nextafter", "not",
        "optimization_barrier", "or", "polygamma", "population_count", "pow", "real",
        "reduce_precision", "rem", "round", "rsqrt", "select_n", "sharding_constraint",
        "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh",
        "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
    }
)  # fmt: skip

REDUCTIONS = frozenset(
    {
        "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or",
        "reduce_prod", "reduce_sum", "reduce_xor",
    }
)  # fmt: skip

CUMULATIVE = frozenset(
    {
        "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum",
    }
)  # fmt: skip

WINDOWS = frozenset(
    {
        "reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window",
    }
)  # fmt: skip


def plain(sizes: Sequence[int], why: str = "") -> Axes:
    """Returns axes of fixed size that are tied to no others."""
    return tuple(Axis(size, why) for size in sizes)


def elementwise(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Ties the axes of arrays of one shape. Scalars and axes of one element are broadcast."""
    rank = len(shapes[0])
    full = [axes for axes in inputs if len(axes) == rank]
    if equation.name == "bitcast_convert_type" and any(
        axis.size != size for axes in full for axis, size in zip(axes, shapes[0], strict=True)
    ):
        return opaque(equation, inputs, shapes)
    if equation.name == "optimization_barrier":
        return inputs
    if not full:
        return [plain(shape) for shape in shapes]
    out = []
    for size, axes in zip(shapes[0], zip(*full, strict=True), strict=True):
        first, *others = [axis for axis in axes if axis.size == size]  # others have one element
        for axis in others:
            tie(first, axis, f"channels combined in two ways in {equation.where}")
        out.append(first)
    return [tuple(out) for _ in shapes]


def opaque(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Keeps all axes of an unknown operation whole."""
    why = f"{equation.name} in {equation.where}"
    for axes in inputs:
        for axis in axes:
            keep(axis, why)
    return [plain(shape, why) for shape in shapes]


def reduction(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Keeps reduced axes whole, since a mean divides by the dense network's number of channels."""
    (axes,) = inputs
    over = equation.params["axes"]
    for index in over:
        keep(axes[index], f"{equation.name} over it in {equation.where}")
    left = tuple(axis for index, axis in enumerate(axes) if index not in over)
    return [left for _ in shapes]


def cumulative(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    (axes,) = inputs
    keep(axes[equation.params["axis"]], f"{equation.name} along it in {equation.where}")
    return [axes]


def windows(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Handles pooling: keeps axes whole unless their window is one element."""
    params, axes = equation.params, inputs[0]
    if len(shapes) != 1 or "window_dimensions" not in params:
        return opaque(equation, inputs, shapes)
    ones = (1,) * len(axes)
    settings = zip(
        params["window_dimensions"], params["window_strides"], params["padding"],
        params.get("base_dilation", ones), params.get("window_dilation", ones), strict=True,
    )  # fmt: skip
    out = []
    for axis, size, (window, stride, padding, base, dilation) in zip(
        axes, shapes[0], settings, strict=True
    ):
        if (window, stride, tuple(padding), base, dilation) == (1, 1, (0, 0), 1, 1):
            out.append(axis)
        else:
            keep(axis, f"{equation.name} over it in {equation.where}")
            out.append(Axis(size, POSITIONS))
    return [tuple(out)]


def broadcast(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Makes new axes where sizes change. Later operations tie them to the axes they meet."""
    (shape,) = shapes
    places = dict(zip(equation.params["broadcast_dimensions"], inputs[0], strict=True))
    return [
        tuple(
            places[i] if i in places and places[i].size == size else Axis(size)
            for i, size in enumerate(shape)
        )
    ]


def reshape(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Matches runs of old and new axes whose sizes have the same product."""
    if equation.params.get("dimensions") is not None:
        return opaque(equation, inputs, shapes)
    old = [axis for axis in inputs[0] if axis.size != 1]
    (shape,) = shapes
    new: list[Axis] = [Axis(size) for size in shape]
    wide = [index for index, size in enumerate(shape) if size != 1]
    while old:
        run, places = [old.pop(0)], [wide.pop(0)]
        while (have := math.prod(a.size for a in run)) != (
            want := math.prod(shape[p] for p in places)
        ):
            if have < want:
                run.append(old.pop(0))
            else:
                places.append(wide.pop(0))
        if all(map(is_whole, run)):
            parts = [Axis(shape[p], reason(run[0])) for p in places]
        elif len(places) == 1:
            parts = [made("product", run)]
        elif len(run) == 1:
            parts = divided(run[0], "product", [shape[p] for p in places], _why(equation))
        else:
            parts = divided(
                made("product", run), "product", [shape[p] for p in places], _why(equation)
            )
        for place, part in zip(places, parts, strict=True):
            new[place] = part
    return [tuple(new)]


def transpose(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    return [tuple(inputs[0][index] for index in equation.params["permutation"])]


def squeeze(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    gone = {index % len(inputs[0]) for index in equation.params["dimensions"]}
    return [tuple(axis for index, axis in enumerate(inputs[0]) if index not in gone)]


def expand_dims(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    left = list(inputs[0])
    new = {index % len(shapes[0]) for index in equation.params["dimensions"]}
    return [tuple(Axis(1) if i in new else left.pop(0) for i in range(len(shapes[0])))]


def rev(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    for index in equation.params["dimensions"]:
        keep(inputs[0][index], f"reversed in {equation.where}")
    return inputs


def concatenate(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    along = equation.params["dimension"]
    first = inputs[0]
    out = list(first)
    for index, axis in enumerate(first):
        if index != along:
            for axes in inputs[1:]:
                tie(axis, axes[index], _why(equation))
    joined = [axes[along] for axes in inputs if axes[along].size]
    out[along] = made("concatenation", joined)
    return [tuple(out)]


def stack(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Ties the axes of the arrays; the new axis is kept whole."""
    first = list(inputs[0])
    for axes in inputs[1:]:
        for axis, other in zip(first, axes, strict=True):
            tie(axis, other, _why(equation))
    first.insert(equation.params["axis"], Axis(len(inputs), f"stacked in {equation.where}"))
    return [tuple(first)]


def unstack(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    (axes,), along = inputs, equation.params["axis"]
    keep(axes[along], f"unstacked in {equation.where}")
    return [(*axes[:along], *axes[along + 1 :]) for _ in shapes]


def tile(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Makes a repeated axis the product of the number of repeats and the axis."""
    out = []
    for axis, often, size in zip(inputs[0], equation.params["reps"], shapes[0], strict=True):
        if often == 1:
            out.append(axis)
        elif axis.size == 1:
            out.append(Axis(size))
        else:
            out.append(made("product", [Axis(often, f"tiled in {equation.where}"), axis]))
    return [tuple(out)]


def slice_(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Divides a contiguously sliced axis into three parts; the slice is the middle one."""
    (axes,), (shape,) = inputs, shapes
    starts = equation.params["start_indices"]
    strides = equation.params["strides"] or (1,) * len(axes)
    out = []
    for axis, start, size, stride in zip(axes, starts, shape, strides, strict=True):
        if size == axis.size:
            out.append(axis)
        elif stride == 1 and size and not is_whole(axis):
            sizes = [start, size, axis.size - start - size]
            parts = divided(axis, "concatenation", [s for s in sizes if s], _why(equation))
            out.append(parts[1 if start else 0])
        else:
            keep(axis, f"sliced in {equation.where}")
            out.append(Axis(size, reason(axis)))
    return [tuple(out)]


def split(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    (axes,), along = inputs, equation.params["axis"]
    sizes = list(equation.params["sizes"])
    if not all(sizes):
        return opaque(equation, inputs, shapes)
    parts = divided(axes[along], "concatenation", sizes, _why(equation))
    return [(*axes[:along], part, *axes[along + 1 :]) for part in parts]


def dynamic_slice(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    out = []
    for axis, size in zip(inputs[0], shapes[0], strict=True):
        if size == axis.size:
            out.append(axis)
        else:
            keep(axis, f"sliced in {equation.where}")
            out.append(Axis(size, reason(axis)))
    return [tuple(out)]


def gather(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Handles indexing: keeps axes whole unless they are taken completely."""
    operand, indices = inputs
    taken = list(taken_whole(equation.params, [axis.size for axis in operand]))
    places = equation.params["dimension_numbers"].offset_dims
    others = list(indices[:-1])
    out = []
    for index, size in enumerate(shapes[0]):
        if index not in places:
            out.append(others.pop(0))
            continue
        source, whole = taken.pop(0)
        out.append(operand[source] if whole else Axis(size, f"indexed in {equation.where}"))
    passed = {id(axis) for axis in out}
    for axis in operand:
        if id(axis) not in passed:
            keep(axis, f"indexed in {equation.where}")
    return [tuple(out)]


def taken_whole(params: dict[str, Any], sizes: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Yields the operand's axes in a gather's result, and whether each is taken completely."""
    numbers = params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    for axis, size in enumerate(sizes):
        if axis not in gone:
            whole = params["slice_sizes"][axis] == size and axis not in numbers.start_index_map
            yield axis, whole


def pad(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Treats padding as concatenation with constants, which may be pruned as channels are."""
    out = []
    for axis, size, (low, high, interior) in zip(
        inputs[0], shapes[0], equation.params["padding_config"], strict=True
    ):
        if (low, high, interior) == (0, 0, 0):
            out.append(axis)
        elif interior or low < 0 or high < 0 or is_whole(axis):
            keep(axis, f"padded in {equation.where}")
            out.append(Axis(size, reason(axis)))
        else:
            parts = [*([Axis(low)] if low else []), axis, *([Axis(high)] if high else [])]
            out.append(made("concatenation", parts))
    return [tuple(out)]


def iota(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    (shape,), along = shapes, equation.params["dimension"]
    return [
        tuple(
            Axis(size, f"numbered in {equation.where}" if index == along else None)
            for index, size in enumerate(shape)
        )
    ]


def collective(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Handles reductions of several arrays over an axis that `jax.vmap` names."""
    over = equation.params["axes"]
    if equation.params["axis_index_groups"] is not None or not all(
        isinstance(axis, int) for axis in over
    ):
        return opaque(equation, inputs, shapes)
    for axes in inputs:
        for index in over:
            keep(axes[index], f"{equation.name} over it in {equation.where}")
    return [tuple(axis for index, axis in enumerate(axes) if index not in over) for axes in inputs]


def random_bits(equation: Any, inputs: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """Returns the axes of the keys, then new axes for the numbers drawn with each key."""
    (keys,) = inputs
    return [(*keys, *(Axis(size) for size in shapes[0][len(keys) :]))]


def _why(equation: Any) -> str:
    return f"channels arranged in two ways in {equation.where}"


RULES: dict[str, Callable[[Any, list[Axes], list[tuple[int, ...]]], list[Axes]]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(CUMULATIVE, cumulative),
    **dict.fromkeys(WINDOWS, windows),
    **dict.fromkeys(("pmax", "pmin", "psum"), collective),
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "transpose": transpose,
    "squeeze": squeeze,
    "expand_dims": expand_dims,
    "rev": rev,
    "concatenate": concatenate,
    "slice": slice_,
    "split": split,
    "dynamic_slice": dynamic_slice,
    "gather": gather,
    "pad": pad,
    "iota": iota,
    "stack": stack,
    "unstack": unstack,
    "tile": tile,
    "random_bits": random_bits,
}
"""Primitive -> rule. The two contractions are missing: `graph.analysis` records them as layers."""

__all__ = ["POSITIONS", "RULES", "Axes", "opaque", "plain", "taken_whole"]
