"""The interface of an attack: a start and a step on a batch of independent trials.

A *trial* is one attempt on one image: a restart, a target class, or both. An attack contains no
loop. `attacks.runner` repeats its step, removes the images whose adversarial example is found, and
fills their slots. One attack therefore works for every batch size, step count, device and radius.
The outcome of a trial depends only on its image, its label, its number and its key.

To *judge* an image is to compute the network's prediction and the attack's loss at it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from irp_jax.attacks.losses import LogitsFn, is_correct
from irp_jax.attacks.threat import Threat


class Problem(NamedTuple):
    """The inputs of a batch of trials. They do not change while the trials run.

    Attributes:
        image: (B, H, W, C) float32 in [0, 1], the natural images.
        label: (B,) int32.
        order: (B, K) int32, the label, then the other classes by descending logit of the natural
            image. `order[:, t]` is target t of a targeted attack, t from 1 to K - 1.
        number: (B,) int32, the number of the trial among the trials of its image, from 0.
        key: (B,) PRNG keys, one per trial.
        threat: the ball; its radius may be traced.
    """

    image: jax.Array
    label: jax.Array
    order: jax.Array
    number: jax.Array
    key: jax.Array
    threat: Threat


class Attacked(NamedTuple):
    """The result of an attack; for a batch every field has a leading axis B.

    Attributes:
        image: (H, W, C), the worst image visited: in [0, 1], within epsilon of the natural one.
        is_adversarial: () bool, whether the network misclassifies `image`.
        loss: () the attack's loss at `image`.
    """

    image: jax.Array
    is_adversarial: jax.Array
    loss: jax.Array


class State(Protocol):
    """The state of a batch of trials: a NamedTuple of arrays with leading axis B."""

    @property
    def worst(self) -> Attacked:
        """The worst image judged so far. A trial is over once its `is_adversarial` is true."""


class Attack(Protocol):
    """The interface of attacks: a frozen dataclass of settings with pure functions for `jax.jit`.

    Attributes:
        name: the name in reports and on the command line.
        steps: number of steps of one trial.
        draws: optional, the string that its random numbers depend on, in place of the name. Two
            attacks with the same `draws` and seed have the same random starts.
    """

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int: ...

    def trials(self, classes: int) -> int:
        """Returns how many trials an image must survive, for a network of `classes` classes."""

    def start(self, logits_fn: LogitsFn, problem: Problem) -> Any:
        """Returns the State before the first step. It may judge its first image already."""

    def step(self, logits_fn: LogitsFn, problem: Problem, state: Any, number: jax.Array) -> Any:
        """Returns the State after one more step.

        Args:
            logits_fn: images (B, H, W, C) -> logits (B, K), each row a function of its image only.
            problem: the same as for `start`.
            state: the State.
            number: (B,) int32, number of steps that each trial has taken. The numbers differ,
                because slots of finished trials are filled again while other trials still run.
        """


def judge(
    logits_fn: LogitsFn,
    images: jax.Array,
    problem: Problem,
    loss: Callable[..., jax.Array],
    *more: jax.Array,
) -> tuple[Attacked, jax.Array]:
    """Judges a batch of images and returns the gradients: one forward and one backward pass.

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
    """Returns the gradient with its non-finite entries set to zero.

    A NaN or an infinity would move the image out of the pixel box.
    """
    return jnp.where(jnp.isfinite(gradient), gradient, jnp.zeros_like(gradient))


def judge_forward(
    logits_fn: LogitsFn,
    images: jax.Array,
    problem: Problem,
    loss: Callable[..., jax.Array],
    *more: jax.Array,
) -> Attacked:
    """Judges a batch of images without the gradient: one forward pass. See `judge`."""
    logits = logits_fn(images)
    values = jax.vmap(loss)(logits, problem.label, *more).astype(images.dtype)
    return Attacked(images, ~jax.vmap(is_correct)(logits, problem.label), values)


def worse(old: Attacked, new: Attacked) -> Attacked:
    """Returns the worse of two judged images of each trial.

    It is the old image if that is adversarial, else the new image if it is adversarial or its loss
    is higher.
    """
    return where(~old.is_adversarial & (new.is_adversarial | (new.loss > old.loss)), new, old)


def where(chosen: jax.Array, yes: Any, no: Any) -> Any:
    """Returns, leaf by leaf, the rows of `yes` where `chosen` (B,) is true, else those of `no`."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)
