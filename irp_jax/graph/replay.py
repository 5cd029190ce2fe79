"""Evaluates a traced network on arrays with fewer channels, one equation after the other.

Most operations have no sizes among their parameters and are evaluated unchanged. Those that do,
such as reshapes and broadcasts, get the sizes that follow from the groups. Functions with a custom
derivative rule keep it: the rule is replayed as well.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import prng
from irp_jax.graph.analysis import Analysis
from irp_jax.graph.axes import BATCH, Axis, is_whole, pieces, root
from irp_jax.graph.building import Function, analysed, shapes_of, traced
from irp_jax.graph.channels import Arrays, ChannelGraph
from irp_jax.graph.fast_convolution import convolution
from irp_jax.graph.program import Atom, Equation, Program, evaluate_alone
from irp_jax.graph.rules import taken_whole

Apply = Callable[..., tuple[Any, Arrays]]
"""(params, state, images, train, key, operands, fast) -> (logits (N, K), state), for arrays of any
width. The last three are optional."""

Operands = Callable[[Equation, list[Any]], list[Any]]
"""(equation, its operands) -> the operands to evaluate it with, of the same shapes and dtypes."""


def network(
    function: Function,
    graph: ChannelGraph,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Apply:
    """Returns a network that also accepts arrays with fewer channels.

    Args:
        function: the network as its author wrote it.
        graph: its channel graph.
        params, state: its arrays of full size, or their shapes and dtypes.

    Returns:
        A pure function of arrays. The sizes of groups follow from the arrays' shapes. Logits of
        fewer than 32 bits are converted to float32. In training the network is traced once for
        every number of images. In inference one trace serves all, unless the network mixes images.

        Its argument `operands`, (analysis) -> `Operands`, changes operands, to round them for
        instance. It is not asked about the inside of functions with a derivative rule of their own.
        Its argument `fast` says whether convolutions on CPUs are replaced by those of
        `graph.fast_convolution`, whose gradients are fast there; False leaves the operations as
        traced.
    """

    params_shapes, state_shapes = shapes_of(params), shapes_of(state)

    @functools.cache
    def at(batch: int, train: bool) -> Analysis:
        # Inference uses full float32, so that measured accuracy is valid on other devices. By
        # default GPUs and TPUs round the factors of a product to 10 and 7 bits.
        precision = None if train else "float32"
        with jax.default_matmul_precision(precision):
            program = traced(
                function, params_shapes, state_shapes, graph.image_shape, batch=batch, train=train
            )
        return analysed(program, graph)

    def apply(
        params: Arrays,
        state: Arrays,
        images: jax.Array,
        train: bool,
        key: Any = None,
        operands: Callable[[Analysis], Operands] | None = None,
        fast: bool = True,
    ) -> tuple[Any, Arrays]:
        batch = images.shape[0]
        analysis = at(2 if graph.any_batch and not train else batch, train)
        sizes: dict[str, Any] = {**graph.sizes({**params, **state}), BATCH: batch}
        inputs = [params[name] for name in sorted(graph.params)]
        inputs += [state[name] for name in sorted(graph.state)]
        inputs += [images, prng.key(0) if key is None else key]
        changed = operands(analysis) if operands else None
        logits, *new = _Replay(analysis, sizes, fast, changed).run(analysis.program, inputs)
        if logits.dtype.itemsize < 4:  # losses and attacks need float32
            logits = logits.astype(jnp.float32)
        return logits, dict(zip(sorted(graph.state), new, strict=True)) if train else state

    return apply


class _Replay:
    """One evaluation, with given sizes of the groups."""

    def __init__(
        self, analysis: Analysis, sizes: Mapping[str, Any], fast: bool, operands: Operands | None
    ) -> None:
        self.analysis, self.sizes, self.fast, self.operands = analysis, sizes, fast, operands

    def size(self, axis: Axis) -> Any:
        axis = root(axis)
        if axis.kind == "concatenation":
            return sum(map(self.size, axis.parts))
        if axis.kind == "product":
            return math.prod(map(self.size, axis.parts))
        if axis.group is not None and axis.whole is None:
            return self.sizes.get(axis.group, axis.size)
        return axis.size

    def axes(self, atom: Atom) -> tuple[Axis, ...]:
        return self.analysis.axes[atom] if isinstance(atom, int) else ()

    def shape(self, atom: Atom) -> tuple[Any, ...]:
        return tuple(map(self.size, self.axes(atom)))

    def run(self, program: Program, inputs: Sequence[Any]) -> list[Any]:
        values: dict[int, Any] = dict(zip(program.inputs, inputs, strict=True))
        for variable, constant in program.constants.items():
            values[variable] = _cut(constant, self.shape(variable))

        def read(atom: Atom) -> Any:
            return values[atom] if isinstance(atom, int) else atom.val

        for equation in program.equations:
            # Whoever traces the replay, to export it for instance, finds the layers by name.
            with jax.named_scope(equation.module):
                given = [read(atom) for atom in equation.inputs]
                if self.operands is not None:
                    given = self.operands(equation, given)
                results = self.evaluate(equation, given)
            values.update(zip(equation.outputs, results, strict=True))
        return [read(atom) for atom in program.outputs]

    def evaluate(self, equation: Equation, inputs: list[Any]) -> list[Any]:
        if equation.call is not None:
            return self.call(equation, inputs)
        shapes = [self.shape(variable) for variable in equation.outputs]
        params = equation.params
        if equation.name == "conv_general_dilated":
            groups = params["feature_group_count"]
            if groups != 1:
                numbers = params["dimension_numbers"]
                each = inputs[1].shape[numbers.rhs_spec[1]]
                groups = inputs[0].shape[numbers.lhs_spec[1]] // each
                params = {**params, "feature_group_count": groups}
            if self.fast:
                return [convolution(inputs[0], inputs[1], params)]
        elif self.changes(equation, shapes):
            params = RESIZED.get(equation.name, _same)(self, equation, shapes)
        elif self.has_body(equation):
            return evaluate_alone(equation.source)(*inputs)
        results = equation.primitive.bind(*inputs, **params)
        return list(results) if equation.primitive.multiple_results else [results]

    def changes(self, equation: Equation, shapes: list[tuple[Any, ...]]) -> bool:
        avals = self.analysis.program.avals
        if any(s != avals[v].shape for v, s in zip(equation.outputs, shapes, strict=True)):
            return True
        return any(
            self.shape(atom) != self.analysis.program.shape(atom) for atom in equation.inputs
        )

    @staticmethod
    def has_body(equation: Equation) -> bool:
        return any(
            hasattr(value, "eqns") or hasattr(value, "jaxpr") or callable(value)
            for value in equation.params.values()
        )

    def call(self, equation: Equation, inputs: list[Any]) -> list[Any]:
        assert equation.call is not None
        body, jvp = equation.call.body, equation.call.jvp
        if jvp is None and self.operands is not None:
            return self.run(body, inputs)  # what `operands` sees can then leave the function
        if jvp is None:
            policy = equation.params.get("policy")
            prevent = bool(equation.params.get("prevent_cse", True))
            again = jax.checkpoint(
                lambda *given: self.run(body, given), prevent_cse=prevent, policy=policy
            )
            return list(again(*inputs))

        @jax.custom_jvp
        def function(*given: Any) -> list[Any]:
            return self.run(body, given)

        @function.defjvp
        def rule(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            out = self.run(jvp, [*primals, *tangents])
            return out[: len(out) // 2], out[len(out) // 2 :]

        return list(function(*inputs))


def _cut(constant: Any, shape: tuple[Any, ...]) -> Any:
    """Returns a constant with fewer channels. Its values along axes of channels are all equal."""
    if shape == np.shape(constant):
        return constant
    return constant[tuple(slice(size) for size in shape)]


# ---- operations with sizes among their parameters --------------------------------------------


def _same(replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]) -> dict[str, Any]:
    return equation.params


def _shape(replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]) -> dict[str, Any]:
    return {**equation.params, "shape": shapes[0]}


def _tile(replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]) -> dict[str, Any]:
    before = replay.shape(equation.inputs[0])
    often = [size // had for size, had in zip(shapes[0], before, strict=True)]
    return {**equation.params, "reps": tuple(often)}


def _random_bits(
    replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]
) -> dict[str, Any]:
    """Leaves out the axes of the keys, which come first in the output's shape."""
    drawn = len(equation.params["shape"])
    return {**equation.params, "shape": shapes[0][len(shapes[0]) - drawn :]}


def _reshape(replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]) -> dict[str, Any]:
    return {**equation.params, "new_sizes": shapes[0]}


def _slice(replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Replaces start and limit by the kept sizes of the pieces before them."""
    params, source = equation.params, equation.inputs[0]
    axes, shape = replay.axes(source), replay.shape(source)
    starts, limits = [], []
    for index, (start, limit) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strict=True)
    ):
        axis = root(axes[index])
        if start == 0 and limit == axis.size:
            limit = shape[index]
        elif axis.kind == "concatenation" and not is_whole(axis):
            before, after = [0], [0]
            for piece in pieces(axis):
                before.append(before[-1] + piece.size)
                after.append(after[-1] + replay.size(piece))
            start, limit = after[before.index(start)], after[before.index(limit)]
        starts.append(start)
        limits.append(limit)
    return {**params, "start_indices": tuple(starts), "limit_indices": tuple(limits)}


def _split(replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]) -> dict[str, Any]:
    axis = equation.params["axis"]
    return {**equation.params, "sizes": tuple(shape[axis] for shape in shapes)}


def _dynamic_slice(
    replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]
) -> dict[str, Any]:
    return {**equation.params, "slice_sizes": shapes[0]}


def _gather(replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]) -> dict[str, Any]:
    axes = replay.axes(equation.inputs[0])
    sizes = list(equation.params["slice_sizes"])
    for index, whole in taken_whole(equation.params, [axis.size for axis in axes]):
        if whole:
            sizes[index] = replay.size(axes[index])
    return {**equation.params, "slice_sizes": tuple(sizes)}


def _pad(replay: _Replay, equation: Equation, shapes: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Pads with as many channels as are kept of the padding."""
    config = []
    out, source = equation.outputs[0], equation.inputs[0]
    for axis, inner, (low, high, interior) in zip(
        replay.axes(out), replay.axes(source), equation.params["padding_config"],
        strict=True,
    ):  # fmt: skip
        if (low or high) and root(axis).kind == "concatenation":
            before, sizes = 0, []
            for piece in pieces(axis):
                sizes.append((before, replay.size(piece)))
                before += piece.size
            end = low + root(inner).size
            low, high = (
                sum(size for start, size in sizes if start < low),
                sum(size for start, size in sizes if start >= end),
            )
        config.append((low, high, interior))
    return {**equation.params, "padding_config": tuple(config)}


RESIZED: dict[str, Callable[[_Replay, Equation, list[tuple[Any, ...]]], dict[str, Any]]] = {
    "broadcast_in_dim": _shape,
    "iota": _shape,
    "random_bits": _random_bits,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "tile": _tile,
}
"""Primitive -> function that returns its parameters for the current sizes."""
