"""Signs that an evaluation overestimates robustness. Each becomes a warning of one line.

The signs are those of the official AutoAttack (its flags_doc.md). Loops, random numbers and
callbacks are found in the traced JAX program of the network.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from irp_jax.attacks.checks import ask
from irp_jax.attacks.losses import cross_entropy, margin
from irp_jax.errors import UserError

Warn = Callable[[str], None]

SQUARE_AHEAD = 0.002
"""Fraction of the images that Square may break after white-box attacks without a warning."""

RANDOM = ("random_bits", "random_seed", "threefry2x32", "rng_bit_generator", "rng_uniform")


def before(
    network: Partial,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    *,
    averaged: bool,
    blind: bool,
    warn: Warn,
) -> None:
    """Checks the network before it is attacked.

    Args:
        network: images (B, H, W, C) float32 -> logits (B, K).
        images: (B, H, W, C) float32 in [0, 1]; one batch is enough.
        labels: (B,) int32.
        logits: (B, K), the network's logits of these images, from an earlier pass.
        averaged: whether all attacks average gradients over many passes.
        blind: whether all attacks do without gradients.
        warn: called with each warning.

    Raises:
        UserError: the logits differ between two passes, and gradients are not averaged; or the
            attacks need gradients that JAX cannot compute.
    """
    tolerance = 1e-3 * max(1.0, float(np.abs(logits).max()))
    apart = _difference_of_passes(network, images, logits)
    if apart > tolerance and not averaged:
        raise UserError(
            f"logits_fn is not deterministic, its logits of two passes differ by {apart:.3g}: "
            'make it deterministic, or use version="rand"'
        )
    program = jax.make_jaxpr(ask)(network, images).jaxpr
    primitives = {equation.primitive.name for equation in _equations(program)}
    if primitives.intersection(RANDOM) and not averaged:
        warn(
            "the network draws random numbers, here the same ones in every call: attack the mean "
            "of its logits over many draws instead"
        )
    if _may_optimise(program):
        warn(
            "the network loops inside: if it optimises its input at test time, gradients through "
            "the loop may vanish; attack it without that, or with a loss adapted to it"
        )
    differentiable = not any("callback" in name for name in primitives) or _has_gradient(
        network, images, labels
    )
    if not differentiable:
        message = "JAX has no gradient of the callback in logits_fn: "
        if not blind:
            raise UserError(
                message + "attack with [Square()] alone, or give the callback a jax.custom_vjp"
            )
        warn(message + "only Square can attack it")
    alike = np.asarray(ask(network, np.repeat(images[:1], len(images), axis=0)))
    moved = float(np.abs(alike[0] - logits[0]).max())
    if moved > tolerance >= apart:  # a random network would differ here too
        warn(
            "the logits of an image depend on the others of its batch: use inference mode, where "
            "batch normalisation uses running statistics"
        )
    if logits.min() >= 0 and logits.max() <= 1 and np.allclose(logits.sum(-1), 1, atol=1e-5):
        warn(
            "the outputs are probabilities: give the logits before the softmax, because its "
            "gradient vanishes where the network is confident"
        )
    if differentiable:
        _check_gradients(network, images, labels, logits.argmax(-1) == labels, warn)


def _difference_of_passes(network: Partial, images: np.ndarray, logits: np.ndarray) -> float:
    """Returns the largest difference between logits and those of another pass."""
    # A new trace: a random number that NumPy draws in the network is a constant of one program.
    again = np.asarray(jax.jit(lambda network, images: network(images))(network, images))
    return float(np.abs(again - logits).max())


def _has_gradient(network: Partial, images: np.ndarray, labels: np.ndarray) -> bool:
    """Returns whether JAX can differentiate a network that calls Python."""
    try:
        jax.eval_shape(functools.partial(_without_gradient, network, margin), images, labels)
    except (ValueError, TypeError, NotImplementedError):
        return False
    return True


def _check_gradients(
    network: Partial, images: np.ndarray, labels: np.ndarray, right: np.ndarray, warn: Warn
) -> None:
    """Warns of losses whose gradient is zero at images that are classified correctly."""
    flat = {
        loss: int((np.asarray(_without_gradient(network, loss, images, labels)) & right).sum())
        for loss in (cross_entropy, margin)
    }
    if flat[margin]:
        warn(
            f"the gradient of the margin is zero at {flat[margin]} of {int(right.sum())} images: "
            "gradients are masked, and only Square and transfer from a smooth copy of the "
            "network can be trusted"
        )
    elif flat[cross_entropy]:
        warn(
            f"the gradient of the cross-entropy loss is zero at {flat[cross_entropy]} of "
            f"{int(right.sum())} images, where the network is too confident: scale its logits "
            "down, or trust attacks on other losses only (apgd-t, fab-t, square)"
        )


def after(accuracy: Mapping[str, float], warn: Warn) -> None:
    """Checks the results of the attacks.

    Args:
        accuracy: attack name -> accuracy after it and all before it, in the order they ran.
        warn: called with each warning.
    """
    names = list(accuracy)
    if "square" not in names or names.index("square") == 0:
        return
    gain = accuracy[names[names.index("square") - 1]] - accuracy["square"]
    if gain > SQUARE_AHEAD:
        warn(
            f"Square, which uses no gradient, broke a further {gain:.1%} of the images: the "
            "white-box attacks are misled; look for masked gradients, and adapt the attack"
        )


@functools.partial(jax.jit, static_argnums=1)
def gradient(network: Partial, loss: Callable, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the gradient of the loss of each image, (B, H, W, C)."""
    return jax.grad(lambda x: jax.vmap(loss)(network(x), labels).sum())(images)


@functools.partial(jax.jit, static_argnums=1)
def _without_gradient(
    network: Partial, loss: Callable, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Returns where the gradient of the loss is zero or NaN, (B,) bool."""
    slopes = gradient(network, loss, images, labels)
    return ~(jnp.abs(slopes).sum(axis=(1, 2, 3)) > 0)


Marks = frozenset[str]
"""The sources that a value of a program depends on."""

PRODUCTS = ("dot_general", "conv_general_dilated")


def _may_optimise(program: Any) -> bool:
    """Returns whether a program has a loop that may change its last input iteratively.

    Args:
        program: the jaxpr of (network, images) -> logits.
    """
    found = []

    def visit(equation: Any, operands: list[Marks]) -> None:
        if any("images" in marks for marks in operands):
            found.append(_is_iteration(equation))

    before = len(program.invars) - 1
    _follow(program, [*[Marks()] * before, Marks({"images"})], visit)
    return any(found)


def _is_iteration(equation: Any) -> bool:
    """Returns whether an operation is a loop that hands floats on, other than a scan of layers."""
    if equation.primitive.name != "scan":
        return equation.primitive.name == "while"
    carried = equation.outvars[: equation.params["num_carry"]]
    floats = any(jnp.issubdtype(variable.aval.dtype, jnp.floating) for variable in carried)
    return floats and not _is_layers(equation)


def _is_layers(scan: Any) -> bool:
    """Returns whether a scan multiplies what it carries by other weights in each iteration.

    Layers that `nn.scan` repeats do. An optimisation uses the same weights in each iteration.
    """
    body, factors = scan.params["jaxpr"].jaxpr, set[Marks]()

    def visit(equation: Any, operands: list[Marks]) -> None:
        if equation.primitive.name in PRODUCTS and any("carried" in marks for marks in operands):
            factors.update(operands)

    same, carried = scan.params["num_consts"], scan.params["num_carry"]
    marks = [Marks()] * same + [Marks({"carried"})] * carried
    marks += [Marks({"scanned"})] * (len(body.invars) - len(marks))
    _follow(body, marks, visit)
    return Marks({"scanned"}) in factors and Marks() not in factors


def _follow(
    program: Any, marks: list[Marks], visit: Callable[[Any, list[Marks]], None]
) -> list[Marks]:
    """Follows the marks of a program's inputs through all its operations.

    Args:
        program: a jaxpr.
        marks: of each input.
        visit: called with each operation, those of inner programs included, and its operands'
            marks.

    Returns:
        The marks of each output.
    """
    known = dict(zip(program.invars, marks, strict=True))

    def of(value: Any) -> Marks:
        return Marks() if hasattr(value, "val") else known.get(value, Marks())

    for equation in program.eqns:
        operands = [of(value) for value in equation.invars]
        visit(equation, operands)
        together = Marks().union(*operands)
        results = [together] * len(equation.outvars)
        is_loop = equation.primitive.name in ("scan", "while")
        for number, inner in enumerate(_inner(equation)):
            count = len(inner.invars)
            # The first operand of `cond` is not given to its branches.
            given = operands[len(operands) - count :] if count <= len(operands) else []
            if equation.primitive.name == "scan":
                same, carried = (equation.params[f"num_{kind}"] for kind in ("consts", "carry"))
                given[same : same + carried] = [together] * carried
            elif is_loop or not given:
                given = [together] * count
            outputs = _follow(inner, given, visit)
            if not is_loop and len(outputs) == len(results):
                earlier = results if number else [Marks()] * len(results)
                results = [one | other for one, other in zip(earlier, outputs, strict=True)]
        known.update(zip(equation.outvars, results, strict=True))
    return [of(value) for value in program.outvars]


def _inner(equation: Any) -> Iterator[Any]:
    """Yields the inner programs of an operation, such as the body of a loop."""
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
    ):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def _equations(program: Any) -> Iterator[Any]:
    """Yields every operation of a traced program, including those of inner programs."""
    for equation in program.eqns:
        yield equation
        for inner in _inner(equation):
            yield from _equations(inner)
