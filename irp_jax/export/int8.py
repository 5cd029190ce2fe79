"""8-bit ONNX files: QuantizeLinear and DequantizeLinear around the layers (the QDQ format).

Runtimes replace such pairs and the layer between them by one integer operator. Activations are
unsigned, and weights signed with a scale for each output channel: onnxruntime has fast kernels for
this combination on x86-64.
"""

import dataclasses

import numpy as np

from irp_jax.export.rules import Operation
from irp_jax.export.simplify import OnnxNodes
from irp_jax.export.tensors import Node, Tensors, Value, known
from irp_jax.quantization.fake import LARGEST

CHANNELS = {"Conv": 0, "MatMul": 1, "Gemm": 1}
"""Operator of a layer -> the axis of output channels of its kernel."""


def fake_quantize(t: Tensors, op: Operation, inputs: list[Value]) -> list[Value]:
    """Writes rounding to 8 bits as a pair of operators."""
    scale = known(np.float32(op.params["scale"]))
    zero_point = known(np.uint8(op.params["zero_point"]))
    levels = t.apply("QuantizeLinear", inputs[0], scale, zero_point, dtype=np.uint8)
    return [t.apply("DequantizeLinear", levels, scale, zero_point, dtype=np.float32)]


def integer_weights(program: OnnxNodes) -> None:
    """Stores the kernels and biases of layers with 8-bit inputs as integers, in place.

    It comes after simplification, when batch norms are part of the kernels. The kernels were
    rounded before, channel by channel, so that nothing is rounded again here. Biases are rounded to
    32-bit integers, in units of the product of both scales.
    """
    nodes: list[Node] = []
    for node in program.nodes:
        source = _moved(program, node.inputs[0]) if node.inputs else None
        kernel = program.constant(node.inputs[1]) if node.op in CHANNELS else None
        if kernel is None or source is None or source.op != "DequantizeLinear":
            nodes.append(node)
            continue
        nodes += _layer(program.tensors, node, source, kernel)
    program.nodes = nodes
    program.update()


def _moved(program: OnnxNodes, name: str) -> Node | None:
    """Returns the operator whose output a tensor is, apart from the order of its axes."""
    node = program.makers.get(name)
    while node is not None and node.op == "Transpose":
        node = program.makers.get(node.inputs[0])
    return node


def _layer(t: Tensors, node: Node, source: Node, kernel: np.ndarray) -> list[Node]:
    """Returns a layer and the operators that turn its stored integers into weights."""
    axis = CHANNELS[node.op]
    others = tuple(each for each in range(kernel.ndim) if each != axis)
    largest = np.abs(kernel.astype(np.float64)).max(others)
    scale = np.where(largest == 0, 1, largest / LARGEST).astype(np.float32)
    along = [-1 if each == axis else 1 for each in range(kernel.ndim)]
    levels = np.round(kernel / scale.reshape(along)).astype(np.int8)
    weights = [_dequantized(t, node, levels, scale, axis)]
    if len(node.inputs) == 3:
        unit = (scale * t.constants[source.inputs[1]]).astype(np.float32)
        bias = np.round(t.constants[node.inputs[2]].reshape(-1).astype(np.float64) / unit)
        limit = np.iinfo(np.int32)
        bias = np.clip(bias, limit.min, limit.max).astype(np.int32)
        weights.append(_dequantized(t, node, bias, unit, 0))
    inputs = (node.inputs[0], *(each.outputs[0] for each in weights))
    return [*weights, dataclasses.replace(node, inputs=inputs)]


def _dequantized(t: Tensors, node: Node, levels: np.ndarray, scale: np.ndarray, axis: int) -> Node:
    """Returns the operator that multiplies stored integers by their scales, without zero points."""
    name = f"{node.outputs[0]}_{'kernel' if levels.ndim > 1 else 'bias'}"
    t.shapes[name], t.dtypes[name] = levels.shape, np.dtype(np.float32)
    return Node(
        op="DequantizeLinear", inputs=(t.constant(levels), t.constant(scale)), outputs=(name,),
        attributes={"axis": axis}, where=node.where,
    )  # fmt: skip
