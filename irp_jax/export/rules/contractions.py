"""Rules of convolutions and matrix products."""

import string

import numpy as np

from irp_jax.export.rules.elementwise import cast_to
from irp_jax.export.rules.operation import Operation, sizes
from irp_jax.export.tensors import Tensors, Value


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
    return [cast_to(t, made, op.dtype)]


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
        return [cast_to(t, t.stored("MatMul", names, op.shape, x.dtype, places), op.dtype)]
    whole = [t.whole(value) for value in inputs]
    written = [
        "".join(side[axis] for axis in value.order)
        for side, value in zip(sides, whole, strict=True)
    ]
    equation = f"{','.join(written)}->{''.join(out)}"
    names = [t.tensor(value) for value in whole]
    axes, dtype = range(len(out)), whole[0].dtype
    total = t.stored("Einsum", names, op.shape, dtype, axes, equation=equation)
    return [cast_to(t, total, op.dtype)]
