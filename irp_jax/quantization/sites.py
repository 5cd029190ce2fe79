"""Which arrays of a traced network are rounded to 8 bits.

A runtime computes a layer in 8-bit integers if its inputs, its weights and its outputs are 8-bit
numbers. So these are rounded:

- the input of each convolution and matrix product with weights, and the weights;
- both operands of each residual addition: a sum of two activations that come from other layers.
  Sums within a function of one activation, such as GELU, are not rounded.

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


Origins = dict[Any, frozenset[Any]]
"""Variable -> the values that it was computed from."""


class _Search:
    """Goes through a program and its rematerialised parts, in order of evaluation."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.found: dict[Equation, tuple[Site, ...]] = {}
        self.names: dict[int, str] = {}
        self.often: Counter[str] = Counter()
        images = analysis.program.inputs[-2]
        self.run(analysis.program, {images: frozenset({images})})

    def run(self, program: Program, activations: Origins) -> Origins:
        """Extends `found`.

        Args:
            program: to go through.
            activations: variables that hold a value of their own for each image, with the outputs
                of layers that they were computed from, back to the last layer or addition.

        Returns:
            These variables and those of the program.
        """
        activations = dict(activations)
        for equation in program.equations:
            if equation.call is not None and equation.call.jvp is None:
                body = equation.call.body
                pairs = zip(body.inputs, equation.inputs, strict=True)
                given = {to: activations[a] for to, a in pairs if _is_in(a, activations)}
                inside = self.run(body, given)
                outputs = zip(equation.outputs, body.outputs, strict=True)
                activations |= {to: inside[a] for to, a in outputs if _is_in(a, inside)}
                continue
            if sites := self.sites(equation, activations):
                self.found[equation] = sites
            held = [activations[atom] for atom in equation.inputs if _is_in(atom, activations)]
            if held:
                origins = frozenset(equation.outputs) if sites else frozenset().union(*held)
                activations |= {v: origins for v in equation.outputs if self.counts_images(v)}
        return activations

    def counts_images(self, variable: int) -> bool:
        batch = root(self.analysis.batch)
        return any(root(axis) is batch for axis in self.analysis.axes[variable])

    def sites(self, equation: Equation, activations: Origins) -> tuple[Site, ...]:
        if len(equation.inputs) != 2:
            return ()
        held = [_is_in(atom, activations) for atom in equation.inputs]
        if equation.name in ("add", "add_any") and all(held):
            shapes = {self.analysis.program.shape(atom) for atom in equation.inputs}
            if len(shapes) != 1 or len(shapes.pop()) < 2:
                return ()
            if len({activations[atom] for atom in equation.inputs}) == 1:
                return ()  # within a function of one value, such as GELU
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


def _is_in(atom: Atom, variables: Origins) -> bool:
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
