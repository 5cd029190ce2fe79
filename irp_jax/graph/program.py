"""A JAX function as a flat list of equations: its jaxpr with calls inlined.

JAX caches the jaxprs of inner functions, so two calls of `relu` share their variables. Here every
call has its own variables, numbered through the whole program. Two kinds of calls are not inlined,
since they do more than evaluate their body: functions with a custom derivative rule
(`jax.custom_jvp`), and rematerialised functions (`jax.checkpoint`).
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
"""The number of a variable, or a literal scalar."""

INLINED = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
}
"""Primitive -> the parameter that holds its body, which is inlined."""

REMATERIALISED = ("remat", "remat2", "checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Equation:
    """One operation.

    Attributes:
        primitive: the JAX primitive.
        params: its static parameters.
        inputs: the variables and literals that it is applied to.
        outputs: the variables that it defines.
        module: the module that it is in; "" outside of modules.
        line: the source line.
        source: the original JAX equation, for evaluating it unchanged.
        call: the called function, if the equation is a call that is not inlined.
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
        """The module, else the source line, for messages."""
        return self.module or self.line


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A traced function of arrays.

    Attributes:
        inputs: the variables of its arguments, in order.
        outputs: the variables and literals that it returns, in order.
        equations: its operations, in order of evaluation.
        constants: variable -> array that the function closes over.
        avals: variable -> shape and dtype; nested programs share this dictionary.
    """

    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    equations: tuple[Equation, ...]
    constants: dict[int, Any]
    avals: dict[int, Any]

    def shape(self, atom: Atom) -> tuple[int, ...]:
        """Returns the shape of a variable or literal."""
        return self.avals[atom].shape if isinstance(atom, int) else np.shape(atom.val)

    def dtype(self, atom: Atom) -> Any:
        """Returns the dtype of a variable or literal."""
        return self.avals[atom].dtype if isinstance(atom, int) else np.asarray(atom.val).dtype


@dataclasses.dataclass(kw_only=True, eq=False)
class Call:
    """A function whose calls are not inlined.

    Attributes:
        body: its program.
        jvp: the program of its derivative rule, if it has one: (primals, tangents) -> (primals out,
            tangents out). It may call the same function again, as the rule of relu does.
    """

    body: Program
    jvp: Program | None = None


def trace(function: Callable, *examples: Any) -> Program:
    """Traces a function and returns its program.

    Args:
        function: a function of arrays that returns a flat list or tuple of arrays.
        examples: `jax.ShapeDtypeStruct` or arrays, one for each argument.
    """
    closed = jax.make_jaxpr(function)(*examples)
    return _Tracer().program(closed.jaxpr, closed.consts)


class _Tracer:
    """Traces a program and its nested programs; numbers their variables in one sequence."""

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
        """Appends the equations of a jaxpr to a program; returns the jaxpr's outputs.

        Args:
            jaxpr, constants: the called function.
            arguments: the arguments of the call.
            held, equations: the program's constants and equations, extended in place.
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
        """Returns the called function of an equation; None unless it is a call to be kept."""
        if source.primitive.name in REMATERIALISED:
            inner = source.params["jaxpr"]
            constants = getattr(inner, "consts", ())
            return Call(body=self.program(getattr(inner, "jaxpr", inner), constants, where))
        if source.primitive.name != "custom_jvp_call":
            return None
        if any(not jnp.issubdtype(v.aval.dtype, jnp.floating) for v in source.invars):
            return None  # tangents of integers have another dtype: evaluated unchanged
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
    """Returns one equation of any primitive as a function of its inputs."""
    bound = source.primitive.get_bind_params(source.params)
    # JAX 0.7 returns functions among a primitive's parameters separately.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)

    def evaluate(*inputs: Any) -> list[Any]:
        found = source.primitive.bind(*functions, *inputs, **params)
        return list(found) if source.primitive.multiple_results else [found]

    return evaluate


def _line(source: Any) -> str:
    """Returns the source line of an equation, or "the network" if it is unknown."""
    from jax._src import source_info_util  # JAX has no public function for this

    return source_info_util.summarize(source.source_info) or "the network"


NAMES_SIZES = frozenset(
    {
        "shape", "new_sizes", "sizes", "start_indices", "limit_indices", "slice_sizes", "reps",
        "padding_config", "broadcast_dimensions", "jaxpr", "call_jaxpr",
    }
)  # fmt: skip
"""Parameters that contain sizes of axes, or functions that do."""


def is_alike(one: Program, other: Program) -> bool:
    """Returns whether two traces of a network for different numbers of images differ only in sizes.

    Their operations, constants and scalars must be equal. Otherwise the network's computation
    depends on the number of images.
    """
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
    """Returns the SHA-256 of a program.

    It covers operations, shapes, literals, constants and the functions that operations hold. Two
    traces of the same code have the same fingerprint in any process with the same version of JAX.

    Args:
        program: the program.
        before: an earlier fingerprint to include.
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
    """Returns a constant as text: dtype, shape and a hash of its values."""
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _plain(value: Any) -> str:
    """Returns a parameter as text, with the constants of jaxprs and without memory addresses.

    JAX writes jaxprs in colour in a terminal or a notebook. The colours are removed.
    """
    held = [_constant(constant) for constant in getattr(value, "consts", ())]
    return re.sub(r"0x[0-9a-f]+|\x1b\[[0-9;]*m", "", f"{value} {held or ''}")
