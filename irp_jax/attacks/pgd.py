"""Projected gradient descent: steps of steepest ascent from a random start inside the ball.

`pgd_start`, `pgd_step` and `pgd_finish` are one run taken apart; `pgd_example` is the whole run,
and `pgd` attacks a batch in one program. `Pgd` is the same as an `Attack`, for whole data sets.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.attacks.attack import Attacked, Problem, finite
from irp_jax.attacks.losses import LogitsFn, Loss, cross_entropy, is_correct
from irp_jax.attacks.runs import run_key
from irp_jax.attacks.threat import Threat, project, random_start, steepest
from irp_jax.errors import UserError

STEP_RATIO = 0.25
"""Default step over epsilon: 2/255 for 8/255, the protocol the literature reports PGD-10 with."""


class PgdState(NamedTuple):
    """One run under way; for a batch every leaf has a leading axis N.

    Attributes:
        current: (H, W, C), the image to step from, not judged yet.
        worst: the worst image judged so far.
    """

    current: jax.Array
    worst: Attacked


def pgd_start(
    image: jax.Array,
    threat: Threat,
    *,
    key: jax.Array,
    start_scale: float | jax.Array = 1.0,
) -> PgdState:
    """Draws one run's start; see `pgd_example` for the arguments."""
    start = random_start(threat, key, image, start_scale)
    # Whatever is judged first takes the place of this, since no loss is below minus infinity.
    nothing = Attacked(start, jnp.asarray(False), jnp.asarray(-jnp.inf, image.dtype))
    return PgdState(start, nothing)


def pgd_step(
    logits_fn: LogitsFn,
    state: PgdState,
    image: jax.Array,
    label: jax.Array,
    threat: Threat,
    *,
    step_size: float | jax.Array,
    loss: Loss = cross_entropy,
) -> PgdState:
    """Judges the current image and steps on from it; see `pgd_example` for the arguments."""
    judge = functools.partial(_judge, logits_fn, label, loss)
    (value, wrong), gradient = jax.value_and_grad(judge, has_aux=True)(state.current)
    worst = _keep_worse(state.worst, Attacked(state.current, wrong, value))
    ahead = state.current + step_size * steepest(threat, finite(gradient))
    return PgdState(project(threat, ahead, image), worst)


def pgd_finish(
    logits_fn: LogitsFn, state: PgdState, label: jax.Array, *, loss: Loss = cross_entropy
) -> Attacked:
    """Judges the last image too and returns the worst; see `pgd_example` for the arguments."""
    value, wrong = _judge(logits_fn, label, loss, state.current)
    return _keep_worse(state.worst, Attacked(state.current, wrong, value))


def _judge(
    logits_fn: LogitsFn, label: jax.Array, loss: Loss, image: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss at one image, and whether the network gets it wrong."""
    logits = logits_fn(image[None])[0]
    return loss(logits, label).astype(image.dtype), ~is_correct(logits, label)


def _keep_worse(worst: Attacked, new: Attacked) -> Attacked:
    """The first fallen image if there is one, else the image of higher loss."""
    replace = ~worst.fallen & (new.fallen | (new.loss > worst.loss))
    return jax.tree.map(lambda old, other: jnp.where(replace, other, old), worst, new)


def pgd_example(
    logits_fn: LogitsFn,
    image: jax.Array,
    label: jax.Array,
    threat: Threat,
    *,
    key: jax.Array,
    steps: int | jax.Array = 10,
    step_size: float | jax.Array | None = None,
    start_scale: float | jax.Array = 1.0,
    loss: Loss = cross_entropy,
) -> Attacked:
    """Attacks one image once.

    Args:
        logits_fn: images (N, H, W, C) -> logits (N, K), each row a function of its image alone
            (inference mode); called with N = 1.
        image: (H, W, C) float32 in [0, 1].
        label: () integer.
        threat: the allowed ball.
        key: a PRNG key of this run's own.
        steps: gradient steps, at least 1.
        step_size: length of a step in pixel units of [0, 1]; epsilon / 4 if None.
        start_scale: radius of the random start over epsilon, in [0, 1]; 0 starts at the image.
        loss: what to climb.

    Returns:
        The first visited image that the network gets wrong, else the visited image of highest
        loss. The start and the last iterate count as visited: the worst case is what robustness
        means, so the result is at least as bad for the network as the last iterate alone.
        `steps`, `step_size`, `start_scale` and the radius may all be traced values.

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018,
        section 2.1.
    """
    length = threat.epsilon * STEP_RATIO if step_size is None else step_size

    def step(_: jax.Array, state: PgdState) -> PgdState:
        return pgd_step(logits_fn, state, image, label, threat, step_size=length, loss=loss)

    state = pgd_start(image, threat, key=key, start_scale=start_scale)
    state = jax.lax.fori_loop(0, steps, step, state)
    return pgd_finish(logits_fn, state, label, loss=loss)


def pgd(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    threat: Threat,
    *,
    key: jax.Array,
    steps: int | jax.Array = 10,
    step_size: float | jax.Array | None = None,
    restarts: int = 1,
    start_scale: float | jax.Array = 1.0,
    loss: Loss = cross_entropy,
) -> Attacked:
    """Attacks a batch: `pgd_example` mapped over images and restarts, the worst restart returned.

    Wrap it in `jax.jit` with `logits_fn` closed over; it is traced anew on every bare call. Memory
    grows with N * restarts. On CPUs, XLA runs the gradient of a convolution many times slower
    inside a loop than outside one (jax-ml/jax issue 12868): there, give a `Pgd` to `assess`.

    Args:
        logits_fn: images (N, H, W, C) -> logits (N, K), each row a function of its image alone
            (inference mode).
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) integer.
        threat: the allowed ball.
        key: restart r of image i draws from `fold_in(fold_in(key, i), r)`.
        steps: gradient steps of each restart, at least 1.
        step_size: length of a step in pixel units of [0, 1]; epsilon / 4 if None.
        restarts: independent starts for each image, at least 1.
        start_scale: radius of the random start over epsilon, in [0, 1]; 0 starts at the image.
        loss: what to climb.

    Returns:
        For each image the first restart that made it fall, else the one of highest loss: images
        (N, H, W, C), fallen (N,) bool, loss (N,). An image's result is the same alone or in any
        batch at the same index, to the rounding of the network.
    """

    def attack(
        image: jax.Array, label: jax.Array, index: jax.Array, restart: jax.Array
    ) -> Attacked:
        return pgd_example(
            logits_fn,
            image,
            label,
            threat,
            key=run_key(key, index, restart),
            steps=steps,
            step_size=step_size,
            start_scale=start_scale,
            loss=loss,
        )

    # XLA folds the batches of one under vmap into a single convolution over the batch: the
    # compiled program is that of the batched gradient, and costs the same.
    over_restarts = jax.vmap(attack, (None, None, None, 0))
    tried = jax.vmap(over_restarts, (0, 0, 0, None))(
        images, labels, jnp.arange(images.shape[0]), jnp.arange(restarts)
    )
    worst = jnp.argmax(jnp.where(tried.fallen, jnp.inf, tried.loss), axis=1)
    return jax.tree.map(lambda leaf: jax.vmap(lambda runs, i: runs[i])(leaf, worst), tried)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pgd:
    """PGD as an `Attack`.

    Attributes:
        name: as reports have it.
        gradient_steps: of one restart.
        restarts: independent starts for each image.
        step_size: length of a step in pixel units; None for `step_ratio` times epsilon.
        step_ratio: see `step_size`.
        start_scale: radius of the random start over epsilon; 0 starts at the image.
        loss: what to climb.

    Raises:
        UserError: a value that cannot be meant; the message names it.
    """

    name: str = "pgd"
    gradient_steps: int = 10
    restarts: int = 1
    step_size: float | None = None
    step_ratio: float = STEP_RATIO
    start_scale: float = 1.0
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        for setting in ("gradient_steps", "restarts"):
            if getattr(self, setting) < 1:
                raise UserError(f"{setting} must be at least 1, got {getattr(self, setting)}")
        length = self.step_ratio if self.step_size is None else self.step_size
        if not 0 < length < math.inf:
            raise UserError(f"the length of a step must be positive, got {length:g}")
        if not 0 <= self.start_scale <= 1:
            raise UserError(f"start_scale must be in [0, 1], got {self.start_scale:g}")

    @property
    def steps(self) -> int:
        """One more than gradient steps: an image is judged on the way to the next."""
        return self.gradient_steps + 1

    def runs(self, classes: int) -> int:
        """As many as restarts."""
        return self.restarts

    def start(self, logits_fn: LogitsFn, problem: Problem) -> PgdState:
        """See `Attack`."""

        def one(image: jax.Array, key: jax.Array) -> PgdState:
            return pgd_start(image, problem.threat, key=key, start_scale=self.start_scale)

        return jax.vmap(one)(problem.image, problem.key)

    def step(
        self, logits_fn: LogitsFn, problem: Problem, state: PgdState, number: jax.Array
    ) -> PgdState:
        """See `Attack`."""
        threat = problem.threat
        length = threat.epsilon * self.step_ratio if self.step_size is None else self.step_size

        def one(state: PgdState, image: jax.Array, label: jax.Array) -> PgdState:
            return pgd_step(
                logits_fn, state, image, label, threat, step_size=length, loss=self.loss
            )

        return jax.vmap(one)(state, problem.image, problem.label)
