"""Runs the rules on a program: derives the axes of every variable, and finds the layers.

A layer is a contraction: a convolution or a matrix product. If one operand depends on the images
and the other does not, the other operand is the kernel. `provenance` traces the kernel back to the
parameter that it is computed from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from irp_jax.graph.axes import Axis, divided, keep, root, tie
from irp_jax.graph.channels import Window
from irp_jax.graph.contraction import Contraction, macs_of
from irp_jax.graph.program import Atom, Equation, Program
from irp_jax.graph.provenance import Provenance
from irp_jax.graph.rules import POSITIONS, RULES, Axes, opaque, plain


class Analysis:
    """The axes of a program's variables, and its layers.

    Attributes:
        axes: variable -> its axes.
        contractions: the layers, in order of execution.
        batch: the batch axis of the images.
    """

    def __init__(
        self,
        program: Program,
        parameters: Mapping[int, str],
        inputs: Sequence[Axes],
        images: Sequence[int],
        batch: Axis,
    ) -> None:
        """Runs the rules on every equation.

        Args:
            program: the program to analyse.
            parameters: position of an input -> its name, for trained parameters.
            inputs: the axes of each input.
            images: positions of the inputs that count as activations: the images and the key.
            batch: the batch axis of the images.
        """
        self.program, self.batch = program, batch
        self.axes: dict[int, Axes] = {}
        self.contractions: list[Contraction] = []
        self._under_way: set[int] = set()
        self._provenance = Provenance(program, parameters, images)
        self._run(program, inputs)
        self.outputs = [self._of(atom) for atom in program.outputs]

    def _of(self, atom: Atom) -> Axes:
        return self.axes[atom] if isinstance(atom, int) else plain(np.shape(atom.val))

    def _run(self, program: Program, inputs: Sequence[Axes]) -> None:
        for variable, axes in zip(program.inputs, inputs, strict=True):
            self.axes[variable] = tuple(axes)
        for variable, value in program.constants.items():
            self.axes[variable] = _constant(value)
        for equation in program.equations:
            outputs = self._apply(equation)
            self.axes.update(zip(equation.outputs, outputs, strict=True))
            self._provenance.follow(equation, self._of)

    def _apply(self, equation: Equation) -> list[Axes]:
        inputs = [self._of(atom) for atom in equation.inputs]
        shapes = [self.program.avals[variable].shape for variable in equation.outputs]
        if equation.call is not None:
            return self._called(equation, inputs)
        if equation.name == "conv_general_dilated":
            return self._convolution(equation, inputs, shapes)
        if equation.name == "dot_general":
            return self._product(equation, inputs)
        sizes = [size for shape in shapes for size in shape]
        rule = RULES.get(equation.name, opaque) if all(sizes) else opaque
        if rule is opaque and (inside := macs_of(equation.source)):
            self._count(equation, inside)
        return rule(equation, inputs, shapes)

    def _count(self, equation: Equation, macs: int) -> None:
        """Adds a layer of which only the cost is known."""
        self.contractions.append(
            Contraction(
                kind="matmul",
                origin=None,
                kernel=(),
                reads=(),
                writes=(),
                around=plain((macs,)),
                where=f"{equation.name} in {equation.where}",
                module=f"{equation.name} in {equation.module}"
                if equation.module
                else equation.name,
            )
        )

    def _called(self, equation: Equation, inputs: list[Axes]) -> list[Axes]:
        """Analyses a call that is not inlined: its body and its derivative, on the same axes."""
        call = equation.call
        assert call is not None
        body, jvp = call.body, call.jvp
        if id(call) in self._under_way:  # the call's own derivative rule calls it
            _tie_all([self.axes[v] for v in body.inputs], inputs)
            return [self._of(atom) for atom in body.outputs]
        self._provenance.hand_on(equation.inputs, body.inputs)
        self._run(body, inputs)
        outputs = [self._of(atom) for atom in body.outputs]
        if jvp is not None:
            self._under_way.add(id(call))
            self._provenance.hand_on(equation.inputs * 2, jvp.inputs)
            met = len(self.contractions)
            self._run(jvp, inputs * 2)
            del self.contractions[met:]
            self._under_way.remove(id(call))
            _tie_all(outputs * 2, [self._of(atom) for atom in jvp.outputs])
        return outputs

    def _kernel(self, equation: Equation) -> int | None:
        """Returns which input of a contraction is its kernel; None if it has no kernel."""
        left, right = (self._provenance.depends_on_images(atom) for atom in equation.inputs)
        if left == right:
            return None
        return 1 if left else 0

    def _convolution(
        self, equation: Equation, inputs: list[Axes], shapes: list[tuple[int, ...]]
    ) -> list[Axes]:
        params, (left, right) = equation.params, inputs
        if params["batch_group_count"] != 1 or self._kernel(equation) != 1:
            self._count(equation, macs_of(equation.source))
            return opaque(equation, inputs, shapes)
        numbers, where = params["dimension_numbers"], equation.where
        (n, c, *space), (o, i, *window), (n_out, c_out, *places) = numbers
        for axis in (*(left[index] for index in space), *(right[index] for index in window)):
            keep(axis, f"convolved over in {where}")
        groups = params["feature_group_count"]
        if groups == 1:
            tie(left[c], right[i], f"channels read in two ways in {where}")
            channels = right[o]
        else:
            # Each group reads its own channels, so the channel axis is a product: groups times
            # channels per group. If a group has one channel, the group is that channel.
            sizes = [groups, right[i].size]
            many, each = divided(left[c], "product", sizes, f"grouped convolution in {where}")
            tie(each, right[i], f"grouped convolution in {where}")
            sizes = [groups, right[o].size // groups]
            also, _ = divided(right[o], "product", sizes, f"grouped convolution in {where}")
            tie(many, also, f"grouped convolution in {where}")
            channels = right[o]
        out = list(plain(shapes[0], POSITIONS))
        out[n_out], out[c_out] = left[n], channels
        counted = list(out)
        if set(params["lhs_dilation"]) != {1}:
            # A transposed convolution inserts zeros between its input's pixels. The cost counts
            # the input's own pixels only.
            for where_out, where_in in zip(places, space, strict=True):
                counted[where_out] = left[where_in]
        shown = Window(
            positions=tuple(left[index].size for index in space),
            kernel=tuple(right[index].size for index in window),
            strides=tuple(params["window_strides"]),
            padding=tuple((low, high) for low, high in params["padding"]),
            input_dilation=tuple(params["lhs_dilation"]),
            kernel_dilation=tuple(params["rhs_dilation"]),
            groups=groups,
        )
        self._record("conv", equation, 1, right, (i,), (o,), tuple(counted), (c_out,), shown)
        return [tuple(out)]

    def _product(self, equation: Equation, inputs: list[Axes]) -> list[Axes]:
        contracted, batched = equation.params["dimension_numbers"]
        left, right = inputs
        where = equation.where
        for pairs in (contracted, batched):
            for a, b in zip(*pairs, strict=True):
                tie(left[a], right[b], f"channels read in two ways in {where}")
        free = [
            [index for index in range(len(axes)) if index not in (*contracted[s], *batched[s])]
            for s, axes in enumerate(inputs)
        ]
        out = (
            *(left[index] for index in batched[0]),
            *(left[index] for index in free[0]),
            *(right[index] for index in free[1]),
        )
        kernel = self._kernel(equation)
        if kernel is None:
            why = (
                "two activations"
                if self._provenance.depends_on_images(equation.inputs[0])
                else "parameters alone"
            )
            for index in contracted[0]:
                keep(left[index], f"a product of {why} sums over it in {where}")
            axes = tuple(left[index] for index in contracted[0])
            self.contractions.append(
                Contraction(
                    kind="matmul",
                    origin=None,
                    kernel=axes,
                    reads=(),
                    writes=(),
                    around=tuple(a for a in out if root(a) is not root(self.batch)),
                    where=where,
                    module=equation.module,
                )
            )
            return [out]
        start = len(batched[0]) + (len(free[0]) if kernel == 1 else 0)
        places = (*range(len(batched[0])), *range(start, start + len(free[kernel])))
        self._record(
            "dense", equation, kernel, inputs[kernel], tuple(contracted[kernel]),
            tuple(free[kernel]), out, places,
        )  # fmt: skip
        return [out]

    def _record(
        self,
        kind: Literal["conv", "dense"],
        equation: Equation,
        side: int,
        kernel: Axes,
        reads: tuple[int, ...],
        writes: tuple[int, ...],
        out: Axes,
        own: tuple[int, ...],
        window: Window | None = None,
    ) -> None:
        """Adds a layer; `own` are the axes of the output that the kernel has as well."""
        atom = equation.inputs[side]
        origin = self._provenance.origin(atom)
        for index in reads:
            if origin is None or origin.axes[index] is None:
                keep(kernel[index], f"the kernel that reads it is computed, in {equation.where}")
        around = tuple(
            axis
            for index, axis in enumerate(out)
            if index not in own and root(axis) is not root(self.batch)
        )
        self.contractions.append(
            Contraction(
                kind=kind,
                origin=origin,
                kernel=kernel,
                reads=reads,
                writes=writes,
                around=around,
                where=equation.where,
                source=self._provenance.source(atom),
                module=equation.module,
                window=window,
            )
        )


def _tie_all(some: Sequence[Axes], others: Sequence[Axes]) -> None:
    for axes, also in zip(some, others, strict=True):
        for a, b in zip(axes, also, strict=True):
            tie(a, b)


def _constant(value: Any) -> Axes:
    """Returns the axes of a constant. An axis may shrink only if all values along it are equal."""
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return plain(value.shape, "random keys")
    value = np.asarray(value)
    return tuple(
        Axis(
            size,
            None
            if (value == value.take([0], axis)).all()
            else "values of a constant differ along it: make it a parameter",
        )
        for axis, size in enumerate(value.shape)
    )
