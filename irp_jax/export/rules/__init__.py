"""The rules that write JAX operations as ONNX operators, one for each primitive.

A rule takes the tensors written so far, the operation and its inputs. It returns the outputs. It
writes standard operators of opset 17 only. An operation without a rule is an error that names it.
"""

from irp_jax.export.rules.axes import (
    broadcast,
    concatenate,
    dimension,
    dynamic_slice,
    expand_dims,
    full,
    gather,
    iota,
    pad,
    reshape,
    rev,
    slice_,
    split,
    squeeze,
    stack,
    tile,
    transpose,
    unstack,
)
from irp_jax.export.rules.contractions import contraction, convolution
from irp_jax.export.rules.elementwise import (
    COMPARISONS,
    IDENTITY,
    LOGIC,
    SAME,
    cast,
    cbrt,
    clamp,
    code,
    comparison,
    erfc,
    exp2,
    expm1,
    identity,
    integer_pow,
    is_finite,
    log1p,
    logic,
    maximum,
    minimum,
    negation,
    not_equal,
    number,
    power,
    reduce_precision,
    remainder,
    rounded,
    rsqrt,
    same,
    select,
    square,
)
from irp_jax.export.rules.operation import Operation, Rule, sizes
from irp_jax.export.rules.reductions import (
    ARGUMENTS,
    REDUCTIONS,
    WINDOWS,
    argument,
    cumulative_sum,
    reduction,
    sort,
    window,
)
from irp_jax.export.tensors import BATCH

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

__all__ = [
    "BATCH", "ELEMENTWISE", "FREE", "RULES", "Operation", "code", "full", "minimum", "number",
    "sizes", "stack", "unstack",
]  # fmt: skip
