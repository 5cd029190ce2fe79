"""APGD: gradient ascent that finds its own step size, with nothing to tune but how long it trials.

The step starts out as wide as the ball. Now and then the run looks back: if too few of its steps
raised the loss, or none since the last look found a new highest, the step is halved and the run
goes on from its best image so far. Between two looks it walks on with momentum.

The worst images of an L1 ball are sparse, so there it is the number of pixels a step changes that
is adapted; and a run first walks in a ball three times as wide, then twice, then in its own.

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
"""Share of the new step; the rest is the step before it, continued."""


class Plan(NamedTuple):
    """What is fixed beforehand about a run's steps; every field is a NumPy array (steps,).

    Attributes:
        window: int32; for a step after which the run looks back the number of steps since it last
            did so, that one included; for all others 0.
        scale: float32, the radius of the ball that the step ends in over epsilon.
        shrinks: bool, whether the ball is smaller than at the step before. In place of a step the
            run then brings its best image into the smaller ball and starts afresh from there.
    """

    window: np.ndarray
    scale: np.ndarray
    shrinks: np.ndarray


def plan(steps: int, norm: Norm) -> Plan:
    """The plan of a run of so many steps, by the published shares."""
    if norm != "l1":
        window = _windows(steps, first=0.22, shrink=0.03, last=0.06)
        return Plan(window, np.ones(steps, np.float32), np.zeros(steps, bool))
    early = int(0.3 * steps)
    stages = (early, early, steps - 2 * early)
    window = np.concatenate([_windows(n, first=0.04, shrink=0.0, last=0.04) for n in stages])
    scale = np.repeat(np.array([3, 2, 1], np.float32), stages)
    return Plan(window, scale, np.diff(scale, prepend=scale[0]) < 0)


def _windows(steps: int, *, first: float, shrink: float, last: float) -> np.ndarray:
    """`Plan.window` from shares of the steps: looks grow more frequent by `shrink` each time."""
    window, less, least = (max(int(share * steps), 1) for share in (first, shrink, last))
    table = np.zeros(steps, np.int32)
    end = window
    while end <= steps:
        table[end - 1] = window
        window = max(window - less, least)
        end += window
    return table


class Halving(NamedTuple):
    """What an L-inf or L2 run remembers for its next look back; every field is (B,).

    Attributes:
        rises: int32, steps since the last look that raised the loss.
        highest: the highest loss as of the last look.
        halved: bool, whether the last look halved the step.
    """

    rises: jax.Array
    highest: jax.Array
    halved: jax.Array


class Sparsity(NamedTuple):
    """What an L1 run remembers for its next look back.

    Attributes:
        changed: (B,) float32, in how many entries the best image differed from the natural one at
            the last look. A step changes the 2 / 3 as many in which the gradient is largest.
    """

    changed: jax.Array


class ApgdState(NamedTuple):
    """A batch of trials under way.

    Attributes:
        current: (B, H, W, C), where the next step starts.
        previous: (B, H, W, C), where the last one did.
        gradient: (B, H, W, C), of the loss at `current`.
        loss: (B,) at the image judged last, which is `current` unless the run went back.
        best: the image of highest loss so far; for L1 in the ball as it is now.
        best_gradient: (B, H, W, C), of the loss there.
        worst: the worst image so far that the threat allows; the natural image, unjudged, if none.
        step_size: (B,) in pixel units of [0, 1].
        memory: for the next look back.
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
    """The attack; see `attack.Attack` for its methods.

    Every image it visits lies in [0, 1], and in the ball too, but for the wider balls that L1 runs
    begin in, where nothing counts as found yet. A step costs `eot` passes forward and backward, and
    so does the start.

    Attributes:
        name: as reports have it, for instance "apgd-t".
        loss: ce (cross-entropy), dlr, or targeted-dlr, which makes each run aim at one class.
        steps: of one run.
        restarts: random starts for each image, and for each target.
        targets: how many classes targeted-dlr aims at, the likeliest first; all if None.
        rho: the share of its steps that must have raised the loss, or the step size is halved.
        eot: passes that a gradient is averaged over. More than one helps only against a network
            that answers at random, and its last answer is the one that counts.

    Raises:
        UserError: a value that cannot be meant; the message names it.
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
            raise UserError(f"{self.loss} aims at no class: leave targets out, got {self.targets}")
        if not 0 < self.rho <= 1:
            raise UserError(f"rho must be in (0, 1], got {self.rho:g}: the published one is 0.75")

    def trials(self, classes: int) -> int:
        """Restarts, times targets if it has any; the restarts of a target follow each other."""
        if self.loss != "targeted-dlr":
            return self.restarts
        others = classes - 1
        return self.restarts * (others if self.targets is None else min(self.targets, others))

    def start(self, logits_fn: LogitsFn, problem: Problem) -> ApgdState:
        """Judges a random image of each run's ball."""
        ball, allowed, *_ = self._at(problem, jnp.zeros_like(problem.number))
        image = jax.vmap(_start_image)(ball, problem.key, problem.image)
        found, gradient = self._judge(logits_fn, image, problem)
        nothing = Attacked(
            problem.image, jnp.zeros_like(found.is_adversarial), jnp.full_like(found.loss, -jnp.inf)
        )
        return _afresh(problem, ball, found, gradient, where(allowed, found, nothing))

    def step(
        self, logits_fn: LogitsFn, problem: Problem, state: ApgdState, number: jax.Array
    ) -> ApgdState:
        """Moves, judges where it got to, and looks back if it is time."""
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
            looked = _look_at_rises(moved, memory, self.rho * window.astype(jnp.float32))
            return where(window > 0, looked, moved._replace(memory=memory))
        looked = where(window > 0, _look_at_sparsity(moved, state.memory, problem, ball), moved)
        return where(shrinks, _afresh(problem, ball, found, gradient, worst), looked)

    def _at(
        self, problem: Problem, number: jax.Array
    ) -> tuple[Threat, jax.Array, jax.Array, jax.Array]:
        """The ball that each run's step `number` ends in, whether it is allowed, and the plan."""
        window, scale, shrinks = (
            jnp.asarray(column)[number] for column in plan(self.steps, problem.threat.norm)
        )
        ball = dataclasses.replace(problem.threat, epsilon=problem.threat.epsilon * scale)
        return ball, scale <= 1, window, shrinks

    def _judge(
        self, logits_fn: LogitsFn, images: jax.Array, problem: Problem
    ) -> tuple[Attacked, jax.Array]:
        """`attack.judge` with this attack's loss, the gradient averaged over `eot` passes."""
        more = (self._target(problem),) if self.loss == "targeted-dlr" else ()
        passes = [
            judge(logits_fn, images, problem, LOSSES[self.loss], *more) for _ in range(self.eot)
        ]
        first, *others = (gradient for _, gradient in passes)
        return passes[-1][0], sum(others, start=first) / self.eot

    def _target(self, problem: Problem) -> jax.Array:
        """(B,) the class that each run aims at."""
        rank = 1 + problem.number // self.restarts
        return jnp.take_along_axis(problem.order, rank[:, None], axis=1)[:, 0]


def _start_image(ball: Threat, key: jax.Array, natural: jax.Array) -> jax.Array:
    """A random image (H, W, C) on the edge of the ball, or inside where the box cuts the ball."""
    if ball.norm == "linf":
        noise = jax.random.uniform(key, natural.shape, natural.dtype, -1.0, 1.0)
    else:
        noise = jax.random.normal(key, natural.shape, natural.dtype)
    if ball.norm != "l1":
        length = distance(ball, noise, jnp.zeros_like(noise))
        noise = ball.epsilon * noise / jnp.maximum(length, 1e-12)
    return project(ball, natural + noise, natural)


def _afresh(
    problem: Problem, ball: Threat, found: Attacked, gradient: jax.Array, worst: Attacked
) -> ApgdState:
    """The state of trials that have judged the first image of a ball and nothing else in it."""
    memory: Halving | Sparsity
    if ball.norm == "l1":
        step_size, memory = ball.epsilon, Sparsity(_changed(found, problem))
    else:
        # As if the step had just been halved: the first look is at the rises alone.
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
    """The next image (H, W, C) of one run, which has taken `number` steps."""
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
    """The signs of so many largest entries of the gradient, zero elsewhere; of L1 length one."""
    sizes = jnp.sort(jnp.abs(gradient), axis=None, descending=True)
    last = jnp.maximum(jnp.ceil(entries), 1.0).astype(jnp.int32) - 1
    signs = jnp.where(jnp.abs(gradient) >= sizes[last], jnp.sign(gradient), 0.0)
    return signs / jnp.maximum(jnp.sum(jnp.abs(signs)), 1.0)


def _look_at_rises(state: ApgdState, memory: Halving, wanted: jax.Array) -> ApgdState:
    """Halves the step of trials that overshoot or are stuck, and sends them back to their best.

    A run overshoots if no more than the `wanted` (B,) number of steps raised its loss.
    """
    overshoots = memory.rises.astype(wanted.dtype) <= wanted
    stuck = ~memory.halved & (state.best.loss <= memory.highest)
    halve = overshoots | stuck
    return _back_to_best(state, halve)._replace(
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        memory=Halving(jnp.zeros_like(memory.rises), state.best.loss, halve),
    )


def _look_at_sparsity(
    state: ApgdState, memory: Sparsity, problem: Problem, ball: Threat
) -> ApgdState:
    """Full steps from the best image for trials where it got sparser, else shorter steps."""
    changed = _changed(state.best, problem)
    sparser = changed < 0.95 * memory.changed
    shorter = jnp.maximum(state.step_size / 1.5, ball.epsilon / 10)
    return _back_to_best(state, sparser)._replace(
        step_size=jnp.where(sparser, ball.epsilon, shorter), memory=Sparsity(changed)
    )


def _back_to_best(state: ApgdState, chosen: jax.Array) -> ApgdState:
    """The chosen trials (B,) go on from their best image."""
    return state._replace(
        current=where(chosen, state.best.image, state.current),
        gradient=where(chosen, state.best_gradient, state.gradient),
    )


def _changed(found: Attacked, problem: Problem) -> jax.Array:
    """(B,) float32, in how many entries the images differ from the natural ones."""
    return jnp.sum(found.image != problem.image, axis=(1, 2, 3), dtype=jnp.float32)
