"""What every attack is: a start and a step, on a batch of trials that know nothing of each other.

A *trial* is one attempt on one image: a restart, a target class, or both. An attack has no loop of
its own: `attacks.runner` repeats its step, drops the images whose adversarial example is found, and
fills their slots. So one attack serves every batch size, step count, device and radius, and the
outcome of a trial depends on its image, its label, its number and its key alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from irp_jax.attacks.losses import LogitsFn, is_correct
from irp_jax.attacks.threat import Threat


class Problem(NamedTuple):
    """What the trials of a batch are given. It does not change while they last.

    Attributes:
        image: (B, H, W, C) float32 in [0, 1], the natural images.
        label: (B,) int32.
        order: (B, K) int32, the classes by falling logit of the natural image, the label put first:
            `order[:, t]` is target t of a targeted attack, t from 1 to K - 1.
        number: (B,) int32, which of its image's trials each is, from 0.
        key: (B,) PRNG keys, one a trial.
        threat: the ball; its radius may be traced.
    """

    image: jax.Array
    label: jax.Array
    order: jax.Array
    number: jax.Array
    key: jax.Array
    threat: Threat


class Attacked(NamedTuple):
    """What an attack found; for a batch every field has a leading axis B.

    Attributes:
        image: (H, W, C), the worst image visited: in [0, 1], within epsilon of the natural one.
        is_adversarial: () bool, whether the network gets `image` wrong.
        loss: () the attack's loss at `image`.
    """

    image: jax.Array
    is_adversarial: jax.Array
    loss: jax.Array


class State(Protocol):
    """A NamedTuple of arrays with leading axis B."""

    @property
    def worst(self) -> Attacked:
        """The worst image judged so far; once `is_adversarial`, the trial is over."""


class Attack(Protocol):
    """A frozen dataclass of settings with two pure functions, safe under `jax.jit`.

    Attributes:
        name: as reports and the command line have it.
        steps: of one trial.
        draws: optional, what its random numbers are drawn by where that is not its name. Two
            attacks of one `draws` and seed start alike.
    """

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int: ...

    def trials(self, classes: int) -> int:
        """How many trials an image must survive, for a network of so many classes."""

    def start(self, logits_fn: LogitsFn, problem: Problem) -> Any:
        """The State before the first step. It may judge its first image already."""

    def step(self, logits_fn: LogitsFn, problem: Problem, state: Any, number: jax.Array) -> Any:
        """The State after one more step.

        Args:
            logits_fn: images (B, H, W, C) -> logits (B, K), each row a function of its image alone.
            problem: what `start` was given.
            state: the State.
            number: (B,) int32, steps that each trial has behind it. Runs are not in step with each
                other: slots of finished trials are filled anew while others are half-way.
        """


def judge(
    logits_fn: LogitsFn,
    images: jax.Array,
    problem: Problem,
    loss: Callable[..., jax.Array],
    *more: jax.Array,
) -> tuple[Attacked, jax.Array]:
    """Runs the network forward and backward once on a batch.

    Args:
        logits_fn: the network.
        images: (B, H, W, C).
        problem: for the labels.
        loss: (logits (K,), label (), *more) -> scalar, for one example.
        more: further arguments of `loss`, each with leading axis B.

    Returns:
        The images, judged; and the gradient of each loss with respect to its image, (B, H, W, C),
        zero where it is not finite.
    """

    def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = logits_fn(x)
        values = jax.vmap(loss)(logits, problem.label, *more).astype(x.dtype)
        return values.sum(), (values, logits)

    gradient, (values, logits) = jax.grad(total, has_aux=True)(images)
    is_adversarial = ~jax.vmap(is_correct)(logits, problem.label)
    return Attacked(images, is_adversarial, values), finite(gradient)


def finite(gradient: jax.Array) -> jax.Array:
    """The gradient with zero where it is no number, so that it leads no image out of the box."""
    return jnp.where(jnp.isfinite(gradient), gradient, jnp.zeros_like(gradient))


def look(
    logits_fn: LogitsFn,
    images: jax.Array,
    problem: Problem,
    loss: Callable[..., jax.Array],
    *more: jax.Array,
) -> Attacked:
    """`judge` without the gradient: one forward pass."""
    logits = logits_fn(images)
    values = jax.vmap(loss)(logits, problem.label, *more).astype(images.dtype)
    return Attacked(images, ~jax.vmap(is_correct)(logits, problem.label), values)


def worse(old: Attacked, new: Attacked) -> Attacked:
    """For each trial its first adversarial image if it has one, else the image of higher loss."""
    return where(~old.is_adversarial & (new.is_adversarial | (new.loss > old.loss)), new, old)


def where(chosen: jax.Array, yes: Any, no: Any) -> Any:
    """Leaf by leaf, the rows of `yes` where `chosen` (B,) and of `no` elsewhere."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)
