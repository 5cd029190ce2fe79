"""Rules of operations that work element by element."""

from typing import Any

import numpy as np

from irp_jax.export.rules.operation import Operation
from irp_jax.export.tensors import Tensors, Value, known

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
    return [cast_to(t, inputs[0], op.dtype)]


def cast_to(t: Tensors, value: Value, dtype: Any) -> Value:
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
