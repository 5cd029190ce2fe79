"""Fewer operators for the same function: one rewriting rule each, applied until none applies.

Batch norms become a scale and a shift, and go into the convolution before them. They never go into
one that comes after: it pads with zeros, which are not scaled and shifted.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from irp_jax.export.tensors import Node, Tensors

Rewrite = Callable[["Program", Node], list[Node] | None]
"""(program, node) -> the nodes in its place, the last with its outputs; None leaves it."""


class Program:
    """Nodes with who makes and who reads each tensor."""

    def __init__(self, tensors: Tensors, output: str) -> None:
        self.tensors, self.output = tensors, output
        self.nodes = list(tensors.nodes)
        self.look()

    def look(self) -> None:
        """Drops what nobody reads, and finds makers and readers anew."""
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
        """The node that makes a tensor, if it is of these operators and nobody else reads it."""
        node = self.makers.get(name)
        return node if node is not None and node.op in ops and self.reads[name] == 1 else None

    def constant(self, name: str) -> np.ndarray | None:
        """A tensor's value, if it is a constant of floating point."""
        data = self.tensors.constants.get(name)
        return data if data is not None and np.issubdtype(data.dtype, np.floating) else None

    def operand(self, node: Node) -> tuple[str, np.ndarray] | None:
        """(tensor, constant) of an operator on two, where one is constant and the order is free."""
        x, other = node.inputs
        if (data := self.constant(other)) is not None:
            return x, data
        if node.op in ("Add", "Mul") and (data := self.constant(x)) is not None:
            return other, data
        return None


def simplified(tensors: Tensors, output: str) -> Program:
    """The nodes that remain.

    Args:
        tensors: all that was written.
        output: name of the tensor that is returned.
    """
    program = Program(tensors, output)
    place = 0
    while place < len(program.nodes):
        node = program.nodes[place]
        for rewrite in REWRITES:
            found = rewrite(program, node)
            if found is not None:
                program.nodes[place : place + 1] = found
                program.look()
                place = -1  # from the beginning: what comes before may be simplified further
                break
        place += 1
    return program


def _with(node: Node, **changes: object) -> Node:
    return dataclasses.replace(node, **changes)  # type: ignore[arg-type]


def _is_kept(program: Program, node: Node, x: str) -> bool:
    """Whether a node's output has the shape of this input."""
    shapes = program.tensors.shapes
    return shapes[node.outputs[0]] == shapes[x]


# ---- scale and shift -----------------------------------------------------------------------------


def canonical(program: Program, node: Node) -> list[Node] | None:
    """Subtraction and division of a constant are addition and multiplication."""
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


def neutral(program: Program, node: Node) -> list[Node] | None:
    """What adds zero or multiplies by one is left out."""
    if node.op not in ("Add", "Mul") or (found := program.operand(node)) is None:
        return None
    x, data = found
    if not (data == (0 if node.op == "Add" else 1)).all() or not _is_kept(program, node, x):
        return None
    if x not in program.makers:  # the images: nothing makes them
        return None
    for place, other in enumerate(program.nodes):
        inputs = tuple(x if name == node.outputs[0] else name for name in other.inputs)
        program.nodes[place] = _with(other, inputs=inputs)
    if program.output == node.outputs[0]:
        program.output = x
    return []


def merged(program: Program, node: Node) -> list[Node] | None:
    """Two scales, two shifts, and a shift that comes before a scale."""
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


def into_convolution(program: Program, node: Node) -> list[Node] | None:
    """A scale or shift of channels right after a convolution goes into its kernel and bias."""
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


def into_product(program: Program, node: Node) -> list[Node] | None:
    """A matrix product and its bias."""
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


def mean(program: Program, node: Node) -> list[Node] | None:
    """A sum that is divided by how many were summed."""
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


def clip(program: Program, node: Node) -> list[Node] | None:
    """The smaller of a constant and of what is larger than another one."""
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


def pool(program: Program, node: Node) -> list[Node] | None:
    """Rows and columns that are split into windows, each of which becomes one number."""
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
