"""Reduces the number of operators, without changing the function of the model.

Each rewriting rule is a function. Rules are applied until none applies. A batch norm becomes a
scale and a shift, which are folded into the kernel and bias of the convolution before it. They are
never folded into the convolution after it, because its zero padding comes after the batch norm.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from irp_jax.export.tensors import Node, Tensors

Rewrite = Callable[["OnnxNodes", Node], list[Node] | None]
"""(program, node) -> the nodes that replace the node; None if the rule does not apply.

The last of the new nodes has the outputs of the old one."""


class OnnxNodes:
    """The nodes of a model.

    Attributes:
        tensors: shapes, dtypes and constants.
        output: name of the tensor of logits.
        nodes: in the order of evaluation.
        makers: name of a tensor -> the node that computes it.
        reads: name of a tensor -> number of times that it is an input or the output of the model.
    """

    def __init__(self, tensors: Tensors, output: str) -> None:
        self.tensors, self.output = tensors, output
        self.nodes = list(tensors.nodes)
        self.update()

    def update(self) -> None:
        """Removes nodes that are not used, and updates `makers` and `reads`."""
        needed, kept = {self.output}, []
        for node in reversed(self.nodes):
            if needed & set(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.makers = {name: node for node in self.nodes for name in node.outputs}
        self.reads = Counter(name for node in self.nodes for name in node.inputs)
        self.reads[self.output] += 1

    def before(self, name: str, *ops: str) -> Node | None:
        """Returns the node that computes a tensor, if its operator is in `ops`.

        Returns None if the tensor is read more than once.
        """
        node = self.makers.get(name)
        return node if node is not None and node.op in ops and self.reads[name] == 1 else None

    def constant(self, name: str) -> np.ndarray | None:
        """Returns the value of a tensor, if it is a floating-point constant."""
        data = self.tensors.constants.get(name)
        return data if data is not None and np.issubdtype(data.dtype, np.floating) else None

    def operand(self, node: Node) -> tuple[str, np.ndarray] | None:
        """Returns (other input, constant) of an operator with two inputs.

        Returns None if no input is constant, or the operator is not commutative and only the first
        is.
        """
        x, other = node.inputs
        if (data := self.constant(other)) is not None:
            return x, data
        if node.op in ("Add", "Mul") and (data := self.constant(x)) is not None:
            return other, data
        return None


def simplified(tensors: Tensors, output: str) -> OnnxNodes:
    """Applies the rules until none applies.

    Args:
        tensors: the operators and constants of the model.
        output: name of the tensor of logits.

    Returns:
        The remaining nodes.
    """
    program = OnnxNodes(tensors, output)
    place = 0
    while place < len(program.nodes):
        node = program.nodes[place]
        for rewrite in REWRITES:
            found = rewrite(program, node)
            if found is not None:
                program.nodes[place : place + 1] = found
                program.update()
                place = -1  # start again: earlier nodes may be simplified further
                break
        place += 1
    return program


def _with(node: Node, **changes: object) -> Node:
    return dataclasses.replace(node, **changes)  # type: ignore[arg-type]


def _is_kept(program: OnnxNodes, node: Node, x: str) -> bool:
    """Returns whether the output of a node has the shape of the input `x`."""
    shapes = program.tensors.shapes
    return shapes[node.outputs[0]] == shapes[x]


# ---- scale and shift -----------------------------------------------------------------------------


def canonical(program: OnnxNodes, node: Node) -> list[Node] | None:
    """Replaces subtraction of a constant by addition, and division by multiplication."""
    if node.op not in ("Sub", "Div") or (found := program.operand(node)) is None:
        return None
    x, data = found
    if node.op == "Sub":
        return [_with(node, op="Add", inputs=(x, program.tensors.constant(-data)))]
    with np.errstate(all="ignore"):
        inverse = (1 / data.astype(np.float64)).astype(data.dtype)
    if not np.isfinite(inverse).all():
        return None
    return [_with(node, op="Mul", inputs=(x, program.tensors.constant(inverse)))]


def neutral(program: OnnxNodes, node: Node) -> list[Node] | None:
    """Removes additions of zero and multiplications by one."""
    if node.op not in ("Add", "Mul") or (found := program.operand(node)) is None:
        return None
    x, data = found
    if not (data == (0 if node.op == "Add" else 1)).all() or not _is_kept(program, node, x):
        return None
    if x not in program.makers:  # x is the input of the model
        return None
    for place, other in enumerate(program.nodes):
        inputs = tuple(x if name == node.outputs[0] else name for name in other.inputs)
        program.nodes[place] = _with(other, inputs=inputs)
    if program.output == node.outputs[0]:
        program.output = x
    return []


def merged(program: OnnxNodes, node: Node) -> list[Node] | None:
    """Merges two scales into one, two shifts into one, and moves a scale before a shift."""
    if node.op not in ("Add", "Mul") or (found := program.operand(node)) is None:
        return None
    x, outer = found
    first = program.before(x, "Add", "Mul")
    if first is None or (inner := program.operand(first)) is None:
        return None
    start, inside = inner
    if (first.op, node.op) == ("Mul", "Add"):
        return None
    scale, shift = outer.astype(np.float64), inside.astype(np.float64)
    with np.errstate(all="ignore"):
        both = (scale + shift if node.op == first.op == "Add" else scale * shift).astype(
            outer.dtype
        )
    if not np.isfinite(both).all():
        return None
    constant = program.tensors.constant
    if first.op == node.op:
        return [_with(node, inputs=(start, constant(both)))]
    scaled = _with(first, op="Mul", inputs=(start, constant(outer)))
    shape, dtype = program.tensors.shapes, program.tensors.dtypes
    name = f"{first.outputs[0]}_scaled"
    shape[name] = tuple(np.broadcast_shapes(shape[start], outer.shape))
    dtype[name] = dtype[start]
    scaled = _with(scaled, outputs=(name,), where=node.where)
    return [scaled, _with(node, op="Add", inputs=(name, constant(both)))]


def into_convolution(program: OnnxNodes, node: Node) -> list[Node] | None:
    """Folds a scale or shift of channels into the kernel and bias of the convolution before it."""
    if node.op not in ("Add", "Mul") or (found := program.operand(node)) is None:
        return None
    x, data = found
    conv = program.before(x, "Conv", "ConvTranspose")
    if conv is None or (kernel := program.constant(conv.inputs[1])) is None:
        return None
    rank, channels = kernel.ndim, program.tensors.shapes[x][1]
    spread = data.reshape((1,) * (rank - data.ndim) + data.shape)
    if spread.size != spread.shape[1] or spread.shape[1] not in (1, channels):
        return None
    each = np.broadcast_to(spread.reshape(-1), (channels,)).astype(np.float64)
    bias = program.constant(conv.inputs[2]) if len(conv.inputs) == 3 else np.zeros(channels)
    if bias is None or (conv.op == "ConvTranspose" and conv.attributes["group"] != 1):
        return None
    if node.op == "Add":
        bias = bias + each
    else:
        along = 0 if conv.op == "Conv" else 1
        sizes = [channels if axis == along else 1 for axis in range(rank)]
        kernel = (kernel * each.reshape(sizes)).astype(kernel.dtype)
        bias = bias * each
    constant = program.tensors.constant
    inputs = [conv.inputs[0], constant(kernel)]
    if bias.any():
        inputs.append(constant(bias.astype(kernel.dtype)))
    return [_with(conv, inputs=tuple(inputs), outputs=node.outputs)]


def into_product(program: OnnxNodes, node: Node) -> list[Node] | None:
    """Merges a matrix product and the addition of its bias."""
    if node.op != "Add" or (found := program.operand(node)) is None:
        return None
    x, data = found
    product = program.before(x, "MatMul")
    shapes = program.tensors.shapes
    if product is None or any(len(shapes[name]) != 2 for name in product.inputs):
        return None
    if data.ndim > 2 or not _is_kept(program, node, x):
        return None
    name = program.tensors.constant(data)
    return [_with(product, op="Gemm", inputs=(*product.inputs, name), outputs=node.outputs)]


# ---- named operators -----------------------------------------------------------------------------


def mean(program: OnnxNodes, node: Node) -> list[Node] | None:
    """Replaces a sum that is divided by the number of summands by a mean."""
    if node.op != "Mul" or (found := program.operand(node)) is None:
        return None
    x, data = found
    total = program.before(x, "ReduceSum")
    if total is None or data.size != 1:
        return None
    axes = program.tensors.constants[total.inputs[1]].tolist()
    before = program.tensors.shapes[total.inputs[0]]
    if not np.isclose(float(data.reshape(())) * math.prod(before[axis] for axis in axes), 1, 1e-6):
        return None
    attributes = {"axes": axes, "keepdims": 0}
    return [
        _with(total, op="ReduceMean", inputs=total.inputs[:1], attributes=attributes,
              outputs=node.outputs)
    ]  # fmt: skip


def clip(program: OnnxNodes, node: Node) -> list[Node] | None:
    """Replaces a minimum of a maximum, both with constants, by one clip."""
    if node.op != "Min":
        return None
    for x, high in (node.inputs, node.inputs[::-1]):
        first = program.before(x, "Relu", "Max")
        top = program.constant(high)
        if first is None or top is None or top.size != 1:
            continue
        if first.op == "Relu":
            (start,), low = first.inputs, program.tensors.constant(np.zeros((), top.dtype))
        else:
            start, low = first.inputs
            bottom = program.constant(low)
            if bottom is None or bottom.size != 1:
                continue
            low = program.tensors.constant(bottom.reshape(()))
        inputs = (start, low, program.tensors.constant(top.reshape(())))
        return [_with(first, op="Clip", inputs=inputs, outputs=node.outputs)]
    return None


POOLS = {"ReduceMax": "MaxPool", "ReduceMean": "AveragePool"}


def pool(program: OnnxNodes, node: Node) -> list[Node] | None:
    """Replaces a reshape into windows and a reduction of each window by a pooling operator."""
    if node.op not in POOLS or node.attributes["axes"] != [3, 5]:
        return None
    split = program.before(node.inputs[0], "Reshape")
    if split is None:
        return None
    before = program.tensors.shapes[split.inputs[0]]
    now = program.tensors.shapes[node.inputs[0]]
    windows = [(now[2], now[3]), (now[4], now[5])] if len(now) == 6 else []
    if len(before) != 4 or now[:2] != before[:2]:
        return None
    if [a * b for a, b in windows] != list(before[2:]):
        return None
    spans = [span for _, span in windows]
    return [
        _with(node, op=POOLS[node.op], inputs=split.inputs[:1],
              attributes={"kernel_shape": spans, "strides": spans})
    ]  # fmt: skip


REWRITES: tuple[Rewrite, ...] = (
    canonical, neutral, merged, into_convolution, into_product, mean, clip, pool,
)  # fmt: skip
