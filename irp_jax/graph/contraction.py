"""The layers of a program: convolutions and matrix products, and what they cost."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax

from irp_jax.graph.axes import Axis, is_whole
from irp_jax.graph.channels import Window
from irp_jax.graph.provenance import Origin
from irp_jax.graph.rules import Axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contraction:
    """A layer, as the analysis finds it.

    Attributes:
        kind: "conv", "dense", or "matmul" of two activations.
        origin: the parameter that operations which keep zeros turn into the kernel; None if there
            is none.
        kernel: the axes of the kernel; for a product without a kernel, the contracted axes.
        reads: which axes of the kernel are contracted with the input's channels.
        writes: which axes of the kernel become the output's channels.
        around: the other axes that the layer is computed along, such as height and width, without
            the batch axis.
        where: the module or source line, for messages.
        source: the first parameter that the kernel is computed from; "" if there is none.
        module: the module that the layer is in; "" outside of modules.
        window: the window of a convolution.
    """

    kind: Literal["conv", "dense", "matmul"]
    origin: Origin | None
    kernel: Axes
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    around: Axes
    where: str
    source: str = ""
    module: str = ""
    window: Window | None = None


def macs_of(source: Any) -> int:
    """Returns the multiply-accumulates of a JAX equation and of the functions that it calls.

    The body of a `scan` counts once per iteration, that of a loop of unknown length once.
    """
    shapes = [getattr(variable.aval, "shape", ()) for variable in source.invars]
    if source.primitive.name == "conv_general_dilated":
        out = math.prod(source.outvars[0].aval.shape)
        return (
            out * math.prod(shapes[1]) // shapes[1][source.params["dimension_numbers"].rhs_spec[0]]
        )
    if source.primitive.name == "dot_general":
        (contracted, _), _ = source.params["dimension_numbers"]
        out = math.prod(source.outvars[0].aval.shape)
        return out * math.prod(shapes[0][axis] for axis in contracted)
    total = sum(
        macs_of(inner)
        for value in jax.tree.leaves(list(source.params.values()))
        for inner in getattr(getattr(value, "jaxpr", value), "eqns", ())
    )
    return total * source.params["length"] if source.primitive.name == "scan" else total


def positions(axes: Sequence[Axis]) -> tuple[int, list[Axis]]:
    """Returns the product of the sizes of fixed axes, and the axes that may shrink."""
    fixed = math.prod(axis.size for axis in axes if is_whole(axis))
    return fixed, [axis for axis in axes if not is_whole(axis)]
