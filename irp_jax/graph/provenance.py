"""What the variables of a program were computed from: the images, and which parameters.

Masks multiply a parameter along its axes. So a layer can be masked only if every operation between
its parameter and its kernel maps zeros to zeros. `origin` follows such operations.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from irp_jax.graph.axes import Axis, is_whole
from irp_jax.graph.program import Atom, Equation, Program

ZERO_STAYS = frozenset(
    {
        "abs", "asinh", "atan", "convert_element_type", "copy", "copy_p", "erf", "name",
        "expm1", "integer_pow", "log1p", "mul", "neg", "reduce_precision", "sign", "sin",
        "sinh", "square", "stop_gradient", "tan", "tanh", "optimization_barrier",
        "sharding_constraint",
    }
)  # fmt: skip
"""Elementwise operations whose output is zero wherever an input is zero."""


AxesOf = Callable[[Atom], Sequence[Axis]]
"""Returns the axes of an array of the program."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The parameter that an array was computed from, and how their axes correspond.

    Attributes:
        name: the parameter's name.
        axes: for each axis of the array, the parameter's axis; None if none corresponds.
    """

    name: str
    axes: tuple[int | None, ...]


class Provenance:
    """What each variable of a program was computed from."""

    def __init__(
        self, program: Program, parameters: Mapping[int, str], images: Sequence[int]
    ) -> None:
        """Starts with the inputs.

        Args:
            program: the program.
            parameters: position of an input -> its name, for trained parameters.
            images: positions of the inputs that count as activations: the images and the key.
        """
        self._program = program
        self._seen = {program.inputs[i] for i in images}
        self._sources = {program.inputs[i]: name for i, name in parameters.items()}
        self._origins = {
            variable: Origin(name, tuple(range(len(program.shape(variable)))))
            for variable, name in self._sources.items()
        }

    def depends_on_images(self, atom: Atom) -> bool:
        """Returns whether an array depends on the images."""
        return isinstance(atom, int) and atom in self._seen

    def source(self, atom: Atom) -> str:
        """Returns the first parameter that an array was computed from; "" if there is none."""
        return self._sources.get(atom, "") if isinstance(atom, int) else ""

    def origin(self, atom: Atom) -> Origin | None:
        """Returns the parameter that operations which keep zeros turned into an array."""
        return self._origins.get(atom) if isinstance(atom, int) else None

    def follow(self, equation: Equation, axes_of: AxesOf) -> None:
        """Finds what the outputs of an equation were computed from.

        Args:
            equation: the equation; those before it were followed.
            axes_of: returns the axes of an array.
        """
        if any(map(self.depends_on_images, equation.inputs)):
            self._seen.update(equation.outputs)
        sources = [name for name in map(self.source, equation.inputs) if name]
        if sources:
            self._sources.update(dict.fromkeys(equation.outputs, sources[0]))
        origin = self._through(equation, axes_of)
        if origin is not None:
            self._origins[equation.outputs[0]] = origin

    def hand_on(self, atoms: Sequence[Atom], variables: Sequence[int]) -> None:
        """Passes what is known of a call's arguments on to the inputs of its program."""
        for atom, variable in zip(atoms, variables, strict=True):
            if self.depends_on_images(atom):
                self._seen.add(variable)
            if name := self.source(atom):
                self._sources[variable] = name
            if origin := self.origin(atom):
                self._origins[variable] = origin

    def _as_wide(self, origin: Origin, atom: Atom, shape: tuple[int, ...]) -> Origin:
        """Returns an array's origin without the axes whose size differs in the given shape."""
        before = self._program.shape(atom)
        if len(before) != len(shape):
            return origin
        return Origin(
            origin.name,
            tuple(
                axis if had == has else None
                for axis, had, has in zip(origin.axes, before, shape, strict=True)
            ),
        )

    def _through(self, equation: Equation, axes_of: AxesOf) -> Origin | None:
        """Returns the origin of an equation's output; None unless the operation keeps zeros."""
        known = [
            (place, origin)
            for place, origin in enumerate(map(self.origin, equation.inputs))
            if origin is not None
        ]
        if not known or len(equation.outputs) != 1 or equation.call is not None:
            return None
        shape = self._program.avals[equation.outputs[0]].shape
        if equation.name in ("mul", "div"):  # zeros are lost along a broadcast axis
            known = [
                (place, self._as_wide(origin, equation.inputs[place], shape))
                for place, origin in known
            ]
        place, origin = max(known, key=lambda pair: sum(a is not None for a in pair[1].axes))
        if equation.name == "integer_pow" and equation.params["y"] <= 0:
            return None
        if equation.name in ZERO_STAYS or (equation.name == "div" and place == 0):
            return origin if len(origin.axes) == len(shape) else None
        before = self._program.shape(equation.inputs[place])
        if equation.name == "slice":
            return self._as_wide(origin, equation.inputs[place], shape)
        if equation.name == "transpose":
            return Origin(
                origin.name, tuple(origin.axes[i] for i in equation.params["permutation"])
            )
        if equation.name in ("reshape", "squeeze", "expand_dims"):
            wide = [axis for axis, size in zip(origin.axes, before, strict=True) if size != 1]
            if [s for s in before if s != 1] != [s for s in shape if s != 1]:
                return None
            return Origin(origin.name, tuple(wide.pop(0) if s != 1 else None for s in shape))
        if equation.name == "broadcast_in_dim":
            axes: list[int | None] = [None] * len(shape)
            for index, to in enumerate(equation.params["broadcast_dimensions"]):
                if before[index] == shape[to]:
                    axes[to] = origin.axes[index]
            return Origin(origin.name, tuple(axes))
        if equation.name == "rev" and all(
            before[i] == 1 or is_whole(axes_of(equation.inputs[place])[i])
            for i in equation.params["dimensions"]
        ):
            return origin
        return None
