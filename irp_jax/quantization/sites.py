"""Which arrays of a traced network are rounded to 8 bits.

A runtime computes a layer in 8-bit integers if its inputs, its weights and its outputs are 8-bit
numbers. So these are rounded:

- the input of each convolution and matrix product with weights, and the weights;
- both operands of each residual addition.

The output of one layer is the input of the next, so outputs are covered as well. The logits are not
rounded. Layers in loops (`jax.lax.scan`) are not rounded either.
"""

from collections import Counter
from typing import Any, NamedTuple

from irp_jax.graph import Analysis, Equation, Program
from irp_jax.graph.axes import root
from irp_jax.graph.program import Atom


class Site(NamedTuple):
    """An operand that is rounded.

    Attributes:
        position: its position among the operands of its equation.
        name: of an activation, unique in the network; "" for weights.
        channels: axes of output channels, for weights.
    """

    position: int
    name: str = ""
    channels: tuple[int, ...] = ()


def find(analysis: Analysis) -> dict[Equation, tuple[Site, ...]]:
    """Returns the operands that are rounded: equation -> sites.

    The names depend on the code of the network alone. They are the same in training and in
    inference, and for every number of channels.

    Args:
        analysis: of a program whose last two inputs are the images and the key.
    """
    return _Search(analysis).found


class _Search:
    """Goes through a program and its rematerialised parts, in order of evaluation."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.found: dict[Equation, tuple[Site, ...]] = {}
        self.names: dict[int, str] = {}
        self.often: Counter[str] = Counter()
        self.run(analysis.program, {analysis.program.inputs[-2]})

    def run(self, program: Program, activations: set[int]) -> set[int]:
        """Extends `found`. Returns the variables that hold a value of their own for each image."""
        activations = set(activations)
        for equation in program.equations:
            if equation.call is not None and equation.call.jvp is None:
                body = equation.call.body
                pairs = zip(body.inputs, equation.inputs, strict=True)
                inside = self.run(body, {to for to, source in pairs if _is_in(source, activations)})
                outputs = zip(equation.outputs, body.outputs, strict=True)
                activations.update(to for to, source in outputs if _is_in(source, inside))
                continue
            if sites := self.sites(equation, activations):
                self.found[equation] = sites
            if any(_is_in(atom, activations) for atom in equation.inputs):
                activations.update(v for v in equation.outputs if self.counts_images(v))
        return activations

    def counts_images(self, variable: int) -> bool:
        batch = root(self.analysis.batch)
        return any(root(axis) is batch for axis in self.analysis.axes[variable])

    def sites(self, equation: Equation, activations: set[int]) -> tuple[Site, ...]:
        if len(equation.inputs) != 2:
            return ()
        held = [_is_in(atom, activations) for atom in equation.inputs]
        if equation.name in ("add", "add_any") and all(held):
            shapes = {self.analysis.program.shape(atom) for atom in equation.inputs}
            if len(shapes) != 1 or len(shapes.pop()) < 2:
                return ()
            return tuple(Site(place, self.name(equation, place)) for place in (0, 1))
        if equation.name not in KERNEL_CHANNELS or sum(held) != 1:
            return ()
        image, kernel = held.index(True), held.index(False)
        channels = KERNEL_CHANNELS[equation.name](self.analysis, equation, kernel)
        return (Site(image, self.name(equation, image)), Site(kernel, channels=channels))

    def name(self, equation: Equation, place: int) -> str:
        """Returns the name of an activation: that of the first site that reads it."""
        variable: Any = equation.inputs[place]
        if variable not in self.names:
            base = f"{equation.module or 'network'}/{equation.name}"
            self.often[base] += 1
            self.names[variable] = f"{base}:{self.often[base]}"
        return self.names[variable]


def _is_in(atom: Atom, variables: set[int]) -> bool:
    return isinstance(atom, int) and atom in variables


def _of_convolution(analysis: Analysis, equation: Equation, kernel: int) -> tuple[int, ...]:
    return (equation.params["dimension_numbers"].rhs_spec[0],)


def _of_product(analysis: Analysis, equation: Equation, kernel: int) -> tuple[int, ...]:
    """Returns the axes of the kernel that are not contracted."""
    contracted, batches = equation.params["dimension_numbers"]
    axes = range(len(analysis.program.shape(equation.inputs[kernel])))
    return tuple(axis for axis in axes if axis not in contracted[kernel] or axis in batches[kernel])


KERNEL_CHANNELS = {"conv_general_dilated": _of_convolution, "dot_general": _of_product}
"""Primitive of a layer -> function that returns the axes of output channels of its kernel."""
