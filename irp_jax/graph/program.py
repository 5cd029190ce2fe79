"""A JAX function as a flat list of equations: its jaxpr with the calls inlined.

JAX caches the jaxprs of inner functions, so that two calls of `relu` share their variables. Here
every call gets variables of its own, numbered through the whole program. Two kinds of calls stay
nested, because evaluating them is more than evaluating their body: functions with a derivative rule
of their own (`jax.custom_jvp`), and rematerialised ones (`jax.checkpoint`).
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

Atom = int | jex.Literal
"""A variable by its number, or a constant scalar."""

INLINED = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
}
"""Primitive -> the parameter that holds its body, which is evaluated in the caller's place."""

REMATERIALISED = ("remat", "remat2", "checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Equation:
    """One operation.

    Attributes:
        primitive: the JAX primitive.
        params: its static parameters.
        inputs: what it is applied to.
        outputs: the variables it defines.
        module: the module that it belongs to; "" outside of modules.
        line: the source line.
        source: the equation as JAX has it, to be evaluated unchanged.
        call: of a nested call, what is called.
    """

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    module: str
    line: str
    source: Any
    call: "Call | None" = None

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name

    @property
    def where(self) -> str:
        """For messages: the module, else the source line."""
        return self.module or self.line


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A function of arrays.

    Attributes:
        inputs: variables of its arguments, in order.
        outputs: what it returns, in order.
        equations: in the order of evaluation.
        constants: variable -> array that the function closes over.
        avals: variable -> shape and dtype; shared by nested programs.
    """

    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    equations: tuple[Equation, ...]
    constants: dict[int, Any]
    avals: dict[int, Any]

    def shape(self, atom: Atom) -> tuple[int, ...]:
        """The shape of a variable or literal."""
        return self.avals[atom].shape if isinstance(atom, int) else np.shape(atom.val)

    def dtype(self, atom: Atom) -> Any:
        """The dtype of a variable or literal."""
        return self.avals[atom].dtype if isinstance(atom, int) else np.asarray(atom.val).dtype


@dataclasses.dataclass(kw_only=True, eq=False)
class Call:
    """A function that is called and not inlined.

    Attributes:
        body: its program.
        jvp: of a function with a derivative rule, the rule's: (primals, tangents) -> (primals out,
            tangents out). It may call the same function again, as the rule of relu does.
    """

    body: Program
    jvp: Program | None = None


def trace(function: Callable, *examples: Any) -> Program:
    """The program of a function.

    Args:
        function: of arrays, returning a flat list or tuple of arrays.
        examples: `jax.ShapeDtypeStruct` or arrays, one for each argument.
    """
    closed = jax.make_jaxpr(function)(*examples)
    return _Tracer().program(closed.jaxpr, closed.consts)


class _Tracer:
    """Numbers the variables of a program and of those nested in it."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.avals: dict[int, Any] = {}
        self.under_way: dict[str, Call] = {}

    def fresh(self, variable: Any) -> int:
        number = next(self.numbers)
        self.avals[number] = variable.aval
        return number

    def program(self, jaxpr: Any, constants: Sequence[Any], where: str = "") -> Program:
        inputs = [self.fresh(variable) for variable in jaxpr.invars]
        held: dict[int, Any] = {}
        equations: list[Equation] = []
        outputs = self.inline(jaxpr, constants, inputs, held, equations, where)
        return Program(
            inputs=tuple(inputs), outputs=tuple(outputs), equations=tuple(equations),
            constants=held, avals=self.avals,
        )  # fmt: skip

    def inline(
        self,
        jaxpr: Any,
        constants: Sequence[Any],
        arguments: Sequence[Atom],
        held: dict[int, Any],
        equations: list[Equation],
        where: str,
    ) -> list[Atom]:
        """Appends the equations of a jaxpr; returns its outputs.

        Args:
            jaxpr, constants: what is called.
            arguments: with what.
            held, equations: of the program, added to.
            where: the module that calls it.
        """
        known: dict[Any, Atom] = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, constants, strict=True):
            known[variable] = number = self.fresh(variable)
            held[number] = value

        def read(atom: Any) -> Atom:
            return atom if isinstance(atom, jex.Literal) else known[atom]

        for source in jaxpr.eqns:
            inputs = [read(atom) for atom in source.invars]
            inside = "/".join(part for part in (where, str(source.source_info.name_stack)) if part)
            if source.primitive.name in INLINED:
                inner = source.params[INLINED[source.primitive.name]]
                results = self.inline(inner.jaxpr, inner.consts, inputs, held, equations, inside)
                known.update(zip(source.outvars, results, strict=True))
                continue
            outputs = [self.fresh(variable) for variable in source.outvars]
            known.update(zip(source.outvars, outputs, strict=True))
            equations.append(
                Equation(
                    primitive=source.primitive,
                    params=dict(source.params),
                    inputs=tuple(inputs),
                    outputs=tuple(outputs),
                    module=inside,
                    line=_line(source),
                    source=source,
                    call=self.call(source, inside),
                )
            )
        return [read(atom) for atom in jaxpr.outvars]

    def call(self, source: Any, where: str) -> Call | None:
        """What a call that is not inlined calls."""
        if source.primitive.name in REMATERIALISED:
            inner = source.params["jaxpr"]
            constants = getattr(inner, "consts", ())
            return Call(body=self.program(getattr(inner, "jaxpr", inner), constants, where))
        if source.primitive.name != "custom_jvp_call":
            return None
        if any(not jnp.issubdtype(v.aval.dtype, jnp.floating) for v in source.invars):
            return None  # integers have no tangents of their own type: evaluated as it is
        inner = source.params["call_jaxpr"]
        # Functions with the same body may have different rules.
        rule_of = getattr(source.params.get("jvp_jaxpr_fun"), "debug_info", None)
        key = f"{inner} {getattr(rule_of, 'func_src_info', '')}"
        if key in self.under_way:
            return self.under_way[key]
        call = self.under_way[key] = Call(body=self.program(inner.jaxpr, inner.consts, where))
        examples = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in source.invars]
        alone = evaluate_alone(source)

        def rule(*both: Any) -> Any:
            primals, tangents = both[: len(examples)], both[len(examples) :]
            out, out_tangents = jax.jvp(alone, primals, tangents)
            return [*out, *out_tangents]

        derived = jax.make_jaxpr(rule)(*examples, *examples)
        call.jvp = self.program(derived.jaxpr, derived.consts, where)
        del self.under_way[key]
        return call


def evaluate_alone(source: Any) -> Callable[..., list[Any]]:
    """One equation as a function of its inputs, whatever kind of primitive it has."""
    bound = source.primitive.get_bind_params(source.params)
    # JAX 0.7 hands functions that the primitive takes as arguments of their own.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)

    def evaluate(*inputs: Any) -> list[Any]:
        found = source.primitive.bind(*functions, *inputs, **params)
        return list(found) if source.primitive.multiple_results else [found]

    return evaluate


def _line(source: Any) -> str:
    """The source line of an equation that belongs to no module."""
    from jax._src import source_info_util  # no public way; only for a message

    return source_info_util.summarize(source.source_info) or "the network"


NAMES_SIZES = frozenset(
    {
        "shape", "new_sizes", "sizes", "start_indices", "limit_indices", "slice_sizes", "reps",
        "padding_config", "broadcast_dimensions", "jaxpr", "call_jaxpr",
    }
)  # fmt: skip
"""Parameters that name sizes of axes, or hold functions that do."""


def is_alike(one: Program, other: Program) -> bool:
    """Whether two traces of a network, on different numbers of images, compute the same but for
    sizes: the same operations, constants and scalars. Else the number of images is used in it."""
    if len(one.equations) != len(other.equations):
        return False
    if list(map(_constant, one.constants.values())) != list(
        map(_constant, other.constants.values())
    ):
        return False

    def scalars(equation: Equation) -> list[str]:
        return [_literal(atom) for atom in equation.inputs if not isinstance(atom, int)]

    for a, b in zip(one.equations, other.equations, strict=True):
        if a.name != b.name or scalars(a) != scalars(b):
            return False
        for key in set(a.params) - NAMES_SIZES:
            if _plain(a.params[key]) != _plain(b.params[key]):
                return False
        if a.call is not None and b.call is not None and not is_alike(a.call.body, b.call.body):
            return False
    return True


def fingerprint(program: Program, before: str = "") -> str:
    """SHA-256 of what a program computes: operations, shapes, literals, constants and the functions
    that operations hold.

    Two traces of the same code agree, in whatever process they are made, with one version of JAX.

    Args:
        program: what to tell from others.
        before: a fingerprint that this one goes on from.
    """
    total = hashlib.sha256(before.encode())
    seen: set[int] = set()

    def atom(value: Atom) -> str:
        return f"v{value}" if isinstance(value, int) else _literal(value)

    def feed(program: Program) -> None:
        for number, value in program.constants.items():
            total.update(f"{number} {_constant(value)}".encode())
        for equation in program.equations:
            held = {key: _plain(value) for key, value in sorted(equation.params.items())}
            shapes = [str(program.avals[v]) for v in equation.outputs]
            inputs = [atom(value) for value in equation.inputs]
            total.update(f"{equation.name} {held} {inputs} {shapes}\n".encode())
            if equation.call is not None and id(equation.call) not in seen:
                seen.add(id(equation.call))
                feed(equation.call.body)
                if equation.call.jvp is not None:
                    feed(equation.call.jvp)
        total.update(repr([atom(value) for value in program.outputs]).encode())

    feed(program)
    return total.hexdigest()


def _literal(value: jex.Literal) -> str:
    return f"{value.val!r}:{value.aval}"


def _constant(value: Any) -> str:
    """A constant by its content."""
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _plain(value: Any) -> str:
    """A parameter as text, without the addresses of functions; with the constants of programs."""
    held = [_constant(constant) for constant in getattr(value, "consts", ())]
    return re.sub(r"0x[0-9a-f]+", "", f"{value} {held or ''}")
