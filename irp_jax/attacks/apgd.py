"""APGD: gradient ascent with momentum that adapts its own step size.

The first step size is the diameter of the ball. At planned steps the trial checks its progress (a
"checkpoint" in the papers). If too few of the steps since the last check raised the loss, or none
of them reached a new highest loss, the step size is halved and the trial continues from its best
image so far.

In L1 the first step size is the radius. A check adapts the number of pixels that a step changes,
because the worst perturbations of an L1 ball are sparse. An L1 trial moves first in a ball of
radius 3 epsilon, then 2 epsilon, then epsilon.

References:
    Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020, sections 3 to 5; for L1 "Mind the box: l1-APGD for sparse
    adversarial attacks on image classifiers", 2021, section 3.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.attacks.attack import Attacked, Problem, judge, where, worse
from irp_jax.attacks.losses import LogitsFn, cross_entropy, dlr, targeted_dlr
from irp_jax.attacks.threat import Norm, Threat, distance, project, steepest
from irp_jax.errors import UserError, unknown

ApgdLoss = Literal["ce", "dlr", "targeted-dlr"]
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "targeted-dlr": targeted_dlr,
}

MOMENTUM = 0.75
"""Weight of the new step. The previous step has the remaining weight."""


class StepPlan(NamedTuple):
    """The part of a trial's plan that is fixed in advance; every field is a NumPy array (steps,).

    Attributes:
        window: int32. At a step that ends with a progress check: the number of steps since the last
            check, this step included. At all other steps: 0.
        scale: float32, radius of the ball that the step ends in, in units of epsilon.
        shrinks: bool, whether the ball is smaller than at the step before. At such a step the trial
            follows no gradient. It projects its best image into the smaller ball and restarts
            there.
    """

    window: np.ndarray
    scale: np.ndarray
    shrinks: np.ndarray


def plan(steps: int, norm: Norm) -> StepPlan:
    """Returns the plan of a trial of `steps` steps, with the fractions of the papers."""
    if norm != "l1":
        window = _windows(steps, first=0.22, shrink=0.03, last=0.06)
        return StepPlan(window, np.ones(steps, np.float32), np.zeros(steps, bool))
    early = int(0.3 * steps)
    stages = (early, early, steps - 2 * early)
    window = np.concatenate([_windows(n, first=0.04, shrink=0.0, last=0.04) for n in stages])
    scale = np.repeat(np.array([3, 2, 1], np.float32), stages)
    return StepPlan(window, scale, np.diff(scale, prepend=scale[0]) < 0)


def _windows(steps: int, *, first: float, shrink: float, last: float) -> np.ndarray:
    """Returns `StepPlan.window`.

    The three fractions of `steps` are the first window, the amount by which each window is shorter
    than the last, and the shortest window.
    """
    window, less, least = (max(int(share * steps), 1) for share in (first, shrink, last))
    table = np.zeros(steps, np.int32)
    end = window
    while end <= steps:
        table[end - 1] = window
        window = max(window - less, least)
        end += window
    return table


class Halving(NamedTuple):
    """The data of an L-inf or L2 trial for its next progress check; every field is (B,).

    Attributes:
        rises: int32, number of steps since the last check that raised the loss.
        highest: the highest loss at the time of the last check.
        halved: bool, whether the last check halved the step size.
    """

    rises: jax.Array
    highest: jax.Array
    halved: jax.Array


class Sparsity(NamedTuple):
    """The data of an L1 trial for its next progress check.

    Attributes:
        changed: (B,) float32, number of entries in which the best image differed from the natural
            image at the last check. A step changes 2 / 3 as many entries: those of largest
            gradient.
    """

    changed: jax.Array


class ApgdState(NamedTuple):
    """The state of a batch of trials.

    Attributes:
        current: (B, H, W, C), the images that the next step starts from.
        previous: (B, H, W, C), the images that the last step started from.
        gradient: (B, H, W, C), of the loss at `current`.
        loss: (B,) at the image judged last: `current`, unless the trial went back to its best.
        best: the image of highest loss so far; for L1 the highest in the present ball.
        best_gradient: (B, H, W, C), of the loss at `best`.
        worst: the worst image so far that the threat allows; before the first, the natural image.
        step_size: (B,) in pixel units of [0, 1].
        memory: the data for the next progress check.
    """

    current: jax.Array
    previous: jax.Array
    gradient: jax.Array
    loss: jax.Array
    best: Attacked
    best_gradient: jax.Array
    worst: Attacked
    step_size: jax.Array
    memory: Halving | Sparsity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apgd:
    """The APGD attack; see `attack.Attack` for its methods.

    Every image it visits lies in [0, 1] and, for L-inf and L2, in the ball. An L1 trial starts in
    wider balls, and no image that it visits there counts. A step costs `eot` forward and backward
    passes, and so does the start.

    Attributes:
        name: the name in reports, for instance "apgd-t".
        loss: ce (cross-entropy), dlr, or targeted-dlr. With targeted-dlr each trial targets one
            class.
        steps: number of steps of one trial.
        restarts: random starts for each image, and for each target.
        targets: number of classes that targeted-dlr targets, the likeliest first; all if None.
        rho: fraction of steps that must raise the loss, or the step size is halved. Unused for L1.
        eot: passes that a gradient is averaged over. More than one helps only against a network
            that draws random numbers. The prediction and the loss are those of the last pass.

    Raises:
        UserError: a setting is invalid; the message names it.
    """

    name: str
    loss: ApgdLoss
    steps: int = 100
    restarts: int = 1
    targets: int | None = None
    rho: float = 0.75
    eot: int = 1

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        for setting in ("steps", "restarts", "eot"):
            if getattr(self, setting) < 1:
                raise UserError(f"{setting} must be at least 1, got {getattr(self, setting)}")
        if self.targets is not None and self.targets < 1:
            raise UserError(f"targets must be at least 1, or None for all, got {self.targets}")
        if self.targets is not None and self.loss != "targeted-dlr":
            raise UserError(f"{self.loss} aims at no class: leave out targets, got {self.targets}")
        if not 0 < self.rho <= 1:
            raise UserError(f"rho must be in (0, 1], got {self.rho:g}: 0.75 is usual")

    def trials(self, classes: int) -> int:
        """Returns restarts times targets, if any. Restarts of one target are consecutive."""
        if self.loss != "targeted-dlr":
            return self.restarts
        others = classes - 1
        return self.restarts * (others if self.targets is None else min(self.targets, others))

    def start(self, logits_fn: LogitsFn, problem: Problem) -> ApgdState:
        """Judges a random image of each trial's ball."""
        ball, allowed, *_ = self._at(problem, jnp.zeros_like(problem.number))
        image = jax.vmap(_start_image)(ball, problem.key, problem.image)
        found, gradient = self._judge(logits_fn, image, problem)
        nothing = Attacked(
            problem.image, jnp.zeros_like(found.is_adversarial), jnp.full_like(found.loss, -jnp.inf)
        )
        return _restarted(problem, ball, found, gradient, where(allowed, found, nothing))

    def step(
        self, logits_fn: LogitsFn, problem: Problem, state: ApgdState, number: jax.Array
    ) -> ApgdState:
        """Moves, judges the new images, and checks the progress if a check is due."""
        ball, allowed, window, shrinks = self._at(problem, number)
        ahead = jax.vmap(_move)(ball, problem.image, state, number, shrinks)
        found, gradient = self._judge(logits_fn, ahead, problem)
        worst = where(allowed, worse(state.worst, found), state.worst)
        best, best_gradient = where(
            found.loss > state.best.loss, (found, gradient), (state.best, state.best_gradient)
        )
        moved = ApgdState(
            current=found.image,
            previous=state.current,
            gradient=gradient,
            loss=found.loss,
            best=best,
            best_gradient=best_gradient,
            worst=worst,
            step_size=state.step_size,
            memory=state.memory,
        )
        if isinstance(state.memory, Halving):
            rises = state.memory.rises + (found.loss > state.loss).astype(jnp.int32)
            memory = state.memory._replace(rises=rises)
            looked = _check_progress(moved, memory, self.rho * window.astype(jnp.float32))
            return where(window > 0, looked, moved._replace(memory=memory))
        looked = where(window > 0, _check_sparsity(moved, state.memory, problem, ball), moved)
        return where(shrinks, _restarted(problem, ball, found, gradient, worst), looked)

    def _at(
        self, problem: Problem, number: jax.Array
    ) -> tuple[Threat, jax.Array, jax.Array, jax.Array]:
        """Returns the plan of each trial's step `number`.

        It consists of the ball that the step ends in, whether images in it count, `window` and
        `shrinks`.
        """
        window, scale, shrinks = (
            jnp.asarray(column)[number] for column in plan(self.steps, problem.threat.norm)
        )
        ball = dataclasses.replace(problem.threat, epsilon=problem.threat.epsilon * scale)
        return ball, scale <= 1, window, shrinks

    def _judge(
        self, logits_fn: LogitsFn, images: jax.Array, problem: Problem
    ) -> tuple[Attacked, jax.Array]:
        """Judges images with this attack's loss; averages the gradients over `eot` passes."""
        more = (self._target(problem),) if self.loss == "targeted-dlr" else ()
        passes = [
            judge(logits_fn, images, problem, LOSSES[self.loss], *more) for _ in range(self.eot)
        ]
        first, *others = (gradient for _, gradient in passes)
        return passes[-1][0], sum(others, start=first) / self.eot

    def _target(self, problem: Problem) -> jax.Array:
        """Returns the class that each trial targets, (B,)."""
        rank = 1 + problem.number // self.restarts
        return jnp.take_along_axis(problem.order, rank[:, None], axis=1)[:, 0]


def _start_image(ball: Threat, key: jax.Array, natural: jax.Array) -> jax.Array:
    """Returns a random image (H, W, C) on the edge of the ball.

    It lies inside the ball where the pixel box cuts the edge off.
    """
    if ball.norm == "linf":
        noise = jax.random.uniform(key, natural.shape, natural.dtype, -1.0, 1.0)
    else:
        noise = jax.random.normal(key, natural.shape, natural.dtype)
    if ball.norm != "l1":
        length = distance(ball, noise, jnp.zeros_like(noise))
        noise = ball.epsilon * noise / jnp.maximum(length, 1e-12)
    return project(ball, natural + noise, natural)


def _restarted(
    problem: Problem, ball: Threat, found: Attacked, gradient: jax.Array, worst: Attacked
) -> ApgdState:
    """Returns the state of trials that have judged only the first image of a ball."""
    memory: Halving | Sparsity
    if ball.norm == "l1":
        step_size, memory = ball.epsilon, Sparsity(_changed(found, problem))
    else:
        # With `halved` set, the first check tests the number of rises only.
        halved, rises = jnp.ones_like(found.is_adversarial), jnp.zeros(found.loss.shape, jnp.int32)
        step_size, memory = 2 * ball.epsilon, Halving(rises, found.loss, halved)
    return ApgdState(
        current=found.image,
        previous=found.image,
        gradient=gradient,
        loss=found.loss,
        best=found,
        best_gradient=gradient,
        worst=worst,
        step_size=jnp.asarray(step_size),
        memory=memory,
    )


def _move(
    ball: Threat, natural: jax.Array, state: ApgdState, number: jax.Array, shrinks: jax.Array
) -> jax.Array:
    """Returns the next image (H, W, C) of one trial that has taken `number` steps."""
    if isinstance(state.memory, Sparsity):
        direction = _sparse_direction(state.gradient, state.memory.changed / 1.5)
        ahead = state.current + state.step_size * direction
        return project(ball, jnp.where(shrinks, state.best.image, ahead), natural)
    ahead = state.current + state.step_size * steepest(ball, state.gradient)
    step = project(ball, ahead, natural) - state.current
    before = state.current - state.previous
    share = jnp.where(number > 0, MOMENTUM, 1.0).astype(step.dtype)
    return project(ball, state.current + share * step + (1.0 - share) * before, natural)


def _sparse_direction(gradient: jax.Array, entries: jax.Array) -> jax.Array:
    """Returns a direction of L1 length one.

    It has the signs of the `entries` largest entries of the gradient there, and is zero elsewhere.
    """
    sizes = jnp.sort(jnp.abs(gradient), axis=None, descending=True)
    last = jnp.maximum(jnp.ceil(entries), 1.0).astype(jnp.int32) - 1
    signs = jnp.where(jnp.abs(gradient) >= sizes[last], jnp.sign(gradient), 0.0)
    return signs / jnp.maximum(jnp.sum(jnp.abs(signs)), 1.0)


def _check_progress(state: ApgdState, memory: Halving, wanted: jax.Array) -> ApgdState:
    """Halves the step size of trials that overshoot or are stuck, and returns them to their best.

    A trial overshoots if at most `wanted` (B,) steps raised its loss since the last check. It is
    stuck if its highest loss did not rise since the last check, unless that check halved the step
    size.
    """
    overshoots = memory.rises.astype(wanted.dtype) <= wanted
    stuck = ~memory.halved & (state.best.loss <= memory.highest)
    halve = overshoots | stuck
    return _back_to_best(state, halve)._replace(
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        memory=Halving(jnp.zeros_like(memory.rises), state.best.loss, halve),
    )


def _check_sparsity(
    state: ApgdState, memory: Sparsity, problem: Problem, ball: Threat
) -> ApgdState:
    """Adapts the step sizes of L1 trials.

    If the best image changes over 5 % fewer entries than at the last check, the trial continues
    from it with the radius as its step size. Otherwise the step size is divided by 1.5, down to a
    tenth of the radius.
    """
    changed = _changed(state.best, problem)
    sparser = changed < 0.95 * memory.changed
    shorter = jnp.maximum(state.step_size / 1.5, ball.epsilon / 10)
    return _back_to_best(state, sparser)._replace(
        step_size=jnp.where(sparser, ball.epsilon, shorter), memory=Sparsity(changed)
    )


def _back_to_best(state: ApgdState, chosen: jax.Array) -> ApgdState:
    """Moves the chosen trials (B,) back to their best image."""
    return state._replace(
        current=where(chosen, state.best.image, state.current),
        gradient=where(chosen, state.best_gradient, state.gradient),
    )


def _changed(found: Attacked, problem: Problem) -> jax.Array:
    """Returns in how many entries each image differs from the natural one, (B,) float32."""
    return jnp.sum(found.image != problem.image, axis=(1, 2, 3), dtype=jnp.float32)
