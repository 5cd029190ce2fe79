"""Writes a network as an ONNX model, one operation of its jaxpr after another.

The network is traced with a symbolic number of images, on its deployed arrays: pruned channels are
removed, pruned weights are zero. Results that do not depend on the images are computed during the
export and stored as constants.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from irp_jax.errors import UserError, extra, unknown
from irp_jax.export import int8, rules
from irp_jax.export.simplify import OnnxNodes, simplified
from irp_jax.export.tensors import IMAGES, LOGITS, Tensors, Value, known
from irp_jax.export.tracing import any_images, tracing
from irp_jax.graph.program import Equation, Program, evaluate_alone, trace

OPSET = 17
"""Version of the standard operators, from ONNX 1.12 (2022)."""

IR_VERSION = 8
"""Version of the file format, from ONNX 1.12."""

LAYOUTS: dict[str, tuple[int, ...]] = {"NHWC": (0, 1, 2, 3), "NCHW": (0, 3, 1, 2)}
"""Layout -> for each axis of the file's input, its place in (N, H, W, C)."""

Function = Callable[[jax.Array], jax.Array]


def serialized(
    function: Function,
    image_shape: Sequence[int],
    *,
    layout: str = "NHWC",
    metadata: Mapping[str, str] | None = None,
    name: str = "network",
) -> bytes:
    """Returns an ONNX model of a function of images.

    The model has one input, `images`, and one output, `logits` (N, K).

    Args:
        function: images (N, H, W, C) float32, N symbolic -> logits (N, K).
        image_shape: (H, W, C).
        layout: axis order of `images`: "NHWC" or "NCHW".
        metadata: key -> text, stored in the model.
        name: name of the ONNX graph.

    Returns:
        The serialized model. It has passed `onnx.checker`.

    Raises:
        UserError: the extra is not installed, the layout is unknown, or an operation has no
            counterpart in ONNX; the message names the operation and its layer.
    """
    with extra("onnx"):
        import onnx
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    tensors, logits = written(_traced(function, tuple(image_shape)), LAYOUTS[layout])
    program = simplified(tensors, logits)
    int8.integer_weights(program)
    model = _model(program, name)
    onnx.helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _traced(function: Function, image_shape: tuple[int, ...]) -> Program:
    images = any_images(image_shape)
    with tracing("any number of images"):
        return trace(lambda images: [function(images)], images)


def check_installed() -> None:
    """Checks that the extra `onnx` is installed.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    with extra("onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401


# ---- the traced function, equation by equation ---------------------------------------------------


def written(program: Program, layout: Sequence[int]) -> tuple[Tensors, str]:
    """Returns the operators of a traced function, and the name of the tensor of logits.

    Args:
        program: the function, with the images as its only input.
        layout: axis order of the images: a value of `LAYOUTS`.
    """
    (images,) = program.inputs
    shape = rules.sizes(program.shape(images))
    tensors = Tensors([shape[axis] for axis in layout])
    given = Value(shape=shape, dtype=np.dtype(np.float32), order=tuple(layout), name=IMAGES)
    (logits,) = _Writer(tensors).run(program, [given])
    return tensors, tensors.tensor(tensors.whole(logits, (0, 1)))


class _Writer:
    """Writes the equations of a program, and of the programs that it calls."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def run(self, program: Program, inputs: Sequence[Value]) -> list[Value]:
        values: dict[int, Value] = dict(zip(program.inputs, inputs, strict=True))
        needed = _needed(program)
        for variable, constant in program.constants.items():
            if variable in needed:
                values[variable] = known(constant)

        def read(atom: Any) -> Value:
            if isinstance(atom, int):
                return values[atom]
            return known(np.asarray(atom.val, program.dtype(atom)))

        for equation in program.equations:
            if not needed & set(equation.outputs):
                continue
            self.tensors.where = equation.where or self.tensors.where
            found = self.equation(program, equation, [read(atom) for atom in equation.inputs])
            values.update(zip(equation.outputs, found, strict=True))
        return [read(atom) for atom in program.outputs]

    def equation(self, program: Program, equation: Equation, inputs: list[Value]) -> list[Value]:
        if equation.call is not None:
            return self.run(equation.call.body, inputs)
        if equation.name in CALLS:
            return CALLS[equation.name](self, equation, inputs)
        avals = [program.avals[variable] for variable in equation.outputs]
        operation = rules.Operation(
            name=equation.name,
            params=equation.params,
            shapes=[rules.sizes(aval.shape) for aval in avals],
            dtypes=[_dtype(aval.dtype) for aval in avals],
        )
        if all(value.data is not None for value in inputs) and equation.name not in rules.FREE:
            computed = _computed(equation, inputs)
            if computed is not None:
                return computed
        if equation.name == "fake_quantize":
            return int8.fake_quantize(self.tensors, operation, inputs)
        if equation.name not in rules.RULES:
            raise self.tensors.refusal(f"{equation.name}, which has no counterpart in ONNX")
        for dtype in operation.dtypes:
            rules.code(self.tensors, dtype)
        return rules.RULES[equation.name](self.tensors, operation, inputs)


def _needed(program: Program) -> set[int]:
    """Returns the variables that the outputs depend on."""
    needed = {atom for atom in program.outputs if isinstance(atom, int)}
    for equation in reversed(program.equations):
        if needed & set(equation.outputs):
            needed.update(atom for atom in equation.inputs if isinstance(atom, int))
    return needed


def _dtype(dtype: Any) -> Any:
    try:
        return np.dtype(dtype)
    except TypeError:  # NumPy has no dtype for random keys
        return dtype


def _computed(equation: Equation, inputs: list[Value]) -> list[Value] | None:
    """Evaluates an equation whose inputs are constants.

    Returns:
        Its outputs; None if they depend on the number of images.
    """
    evaluate = evaluate_alone(equation.source)
    if equation.name in rules.ELEMENTWISE:
        # An axis that no input stores is not stored in the output either: see `Value.order`.
        shape = max((value.shape for value in inputs), key=len)
        order = sorted({axis for value in inputs for axis in value.order})
        arrays = []
        for value in inputs:
            turn = sorted(range(len(value.order)), key=value.order.__getitem__)
            sizes = [value.shape[axis] if axis in value.order else 1 for axis in order]
            assert value.data is not None
            arrays.append(value.data.transpose(turn).reshape(sizes))
        results = evaluate(*(jnp.asarray(each) for each in np.broadcast_arrays(*arrays)))
        return [
            Value(shape=shape, dtype=out.dtype, order=tuple(order), data=np.asarray(out))
            for out in results
        ]
    sizes = [size for variable in equation.source.outvars for size in variable.aval.shape]
    if any(size > rules.BATCH // 2 for value in inputs for size in value.shape) or not all(
        isinstance(size, int) for size in sizes
    ):
        return None
    if equation.name == "dim_as_value":
        return None
    arrays = [rules.full(value) for value in inputs]
    return [known(out) for out in evaluate(*map(jnp.asarray, arrays))]


# ---- calls, loops, branches ----------------------------------------------------------------------


def _body(closed: Any) -> Program:
    """Traces a closed jaxpr that is a parameter of an equation."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
    return trace(jex.jaxpr_as_fun(closed), *shapes)


def _call(writer: _Writer, equation: Equation, inputs: list[Value]) -> list[Value]:
    """Writes the body of a function with a custom derivative; the derivative is not needed."""
    held = equation.params
    closed = held.get("call_jaxpr") or held.get("fun_jaxpr") or held["jaxpr"]
    return writer.run(_body(closed), inputs)


def _scan(writer: _Writer, equation: Equation, inputs: list[Value]) -> list[Value]:
    """Writes a loop as its unrolled steps."""
    params, t = equation.params, writer.tensors
    consts, carried, length = params["num_consts"], params["num_carry"], params["length"]
    body = _body(params["jaxpr"])
    fixed, carry, rows = (
        inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :],
    )  # fmt: skip
    stacked: list[list[Value]] = []
    steps = range(length)[::-1] if params["reverse"] else range(length)
    for step in steps:
        carry, now = _split(writer.run(body, [*fixed, *carry, *_rows(t, rows, step)]), carried)
        stacked.append(now)
    if params["reverse"]:
        stacked.reverse()
    out = []
    for pieces in zip(*stacked, strict=True):
        shape = (length, *pieces[0].shape)
        operation = rules.Operation(
            name="stack", params={"axis": 0}, shapes=[shape], dtypes=[pieces[0].dtype]
        )
        out += rules.stack(t, operation, list(pieces))
    return [*carry, *out]


def _split(values: list[Value], at: int) -> tuple[list[Value], list[Value]]:
    return values[:at], values[at:]


def _rows(t: Tensors, arrays: list[Value], step: int) -> list[Value]:
    """Returns row `step` of each array."""
    out = []
    for array in arrays:
        if array.data is not None:
            out.append(known(rules.full(array)[step]))
            continue
        operation = rules.Operation(
            name="unstack", params={"axis": 0},
            shapes=[array.shape[1:]] * array.shape[0], dtypes=[array.dtype] * array.shape[0],
        )  # fmt: skip
        out.append(rules.unstack(t, operation, [array])[step])
    return out


def _cond(writer: _Writer, equation: Equation, inputs: list[Value]) -> list[Value]:
    """Writes a branch.

    If the condition is a constant, only the chosen branch is written. Otherwise both are, and a
    Where selects the result.
    """
    which, *given = inputs
    branches = equation.params["branches"]
    if which.data is not None:
        chosen = min(max(int(which.data), 0), len(branches) - 1)
        return writer.run(_body(branches[chosen]), given)
    if len(branches) != 2:
        raise writer.tensors.refusal("a conditional with more than two branches")
    no, yes = (writer.run(_body(branch), given) for branch in branches)
    t = writer.tensors
    if which.dtype != bool:
        which = t.apply("Greater", which, rules.number(which, 0), dtype=bool)
    return [t.apply("Where", which, a, b) for a, b in zip(yes, no, strict=True)]


def _exported(writer: _Writer, equation: Equation, inputs: list[Value]) -> list[Value]:
    raise UserError(
        "the network was loaded from its StableHLO function, and ONNX needs the operations of its "
        "model: give --model, or --format=stablehlo"
    )


CALLS: dict[str, Callable[[_Writer, Equation, list[Value]], list[Value]]] = {
    **dict.fromkeys(
        ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"), _call
    ),
    "scan": _scan,
    "cond": _cond,
    "call_exported": _exported,
}


# ---- the file ------------------------------------------------------------------------------------


def _model(program: OnnxNodes, name: str) -> Any:
    """Returns the model as a protocol buffer of ONNX."""
    import onnx
    from onnx import helper, numpy_helper

    tensors = program.tensors
    names = {program.output: LOGITS}
    if program.output not in program.makers:
        raise tensors.refusal("a network whose logits do not depend on the images")
    for number, node in enumerate(program.nodes):
        for output in node.outputs:
            names.setdefault(output, f"{node.op.lower()}_{number}")
    used: dict[str, None] = {}
    for node in program.nodes:
        used.update(dict.fromkeys(each for each in node.inputs if each in tensors.constants))
    names |= {each: f"constant_{number}" for number, each in enumerate(used)}
    nodes = [
        helper.make_node(
            node.op,
            [names.get(each, each) for each in node.inputs],
            [names[each] if place == 0 else f"{names[each]}_{place}"
             for place, each in enumerate(node.outputs)],
            name=f"{node.where}/{node.op}_{number}",
            **_attributes(node.attributes),
        )
        for number, node in enumerate(program.nodes)
    ]  # fmt: skip
    images, logits = tensors.shapes[IMAGES], tensors.shapes[program.output]
    float_ = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(IMAGES, float_, ["N", *images[1:]])],
        [
            helper.make_tensor_value_info(
                LOGITS, rules.code(tensors, tensors.dtypes[program.output]), ["N", logits[1]]
            )
        ],
        [numpy_helper.from_array(tensors.constants[each], names[each]) for each in used],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(
        graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="irp_jax"
    )


def _attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns attributes with all numbers as Python integers or lists of them."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return value
        return [int(each) for each in value] if isinstance(value, Sequence) else int(value)

    return {key: plain(value) for key, value in attributes.items()}


__all__ = ["LAYOUTS", "OPSET", "serialized", "written"]
