"""FAB: searches for the nearest decision boundary instead of the highest loss.

Each step linearises the network at the current image. The boundary between the label and another
class is then a hyperplane, and the nearest point on it within the pixel box has a closed form. The
step goes to that point and a little beyond. It is biased towards the point of the hyperplane that
is nearest to the *natural* image. From a misclassified image the next step starts part of the way
back to the natural image, so the adversarial images come closer and closer to it. The radius does
not affect the search. It only decides which of the images found count.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.attacks.attack import Attacked, Problem, finite, judge_forward, where, worse
from irp_jax.attacks.losses import LogitsFn, is_correct, margin
from irp_jax.attacks.threat import (
    Norm,
    Threat,
    clip_to_box,
    distance,
    random_start,
    steepest,
)
from irp_jax.errors import UserError

_SMALLEST_MOVE = 1e-8
"""Lower bound on the length of a move, so that two moves of length zero have equal weights."""


class FabState(NamedTuple):
    """The state of a batch of trials; every leaf has a leading axis B.

    Attributes:
        current: (B, H, W, C) in [0, 1], the image to linearise at; it may be outside the ball.
        worst: the worst of the visited images that are within epsilon.
    """

    current: jax.Array
    worst: Attacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fab:
    """The fast adaptive boundary attack; an `attacks.attack.Attack`.

    Every image visited is judged as it is and counts if it is within epsilon. No image is projected
    into the ball. The loss reported is the margin.

    Attributes:
        name: the name in reports and on the command line.
        targets: number of classes to target, the likeliest first, each in trials of its own (FAB-T:
            one gradient a step). With None, every step moves to the nearest of all boundaries,
            which takes K - 1 gradients.
        steps: number of steps of one trial. A step is one pass forward and backward (K - 1 backward
            without targets) and one forward.
        restarts: trials for each target. The first starts at the natural image, the others at a
            random point of the ball of half of epsilon.
        alpha_max: largest weight of the move from the natural image; in [0, 1].
        eta: length of a move, in units of the distance to the hyperplane; at least 1.
        beta: distance from the natural image at which the way back ends, in units of the distance
            of the adversarial image that it starts at; in (0, 1).

    Raises:
        UserError: a setting is invalid; the message names it.

    References:
        Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
        attack", 2020, algorithm 1 without its final search, as in AutoAttack. Targets: Croce &
        Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", 2020.
    """

    name: str
    targets: int | None
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        for setting in ("steps", "restarts"):
            if getattr(self, setting) < 1:
                raise UserError(f"{setting} must be at least 1, got {getattr(self, setting)}")
        if self.targets is not None and self.targets < 1:
            raise UserError(
                f"targets must be at least 1, or None for no target, got {self.targets}"
            )
        if not 0 <= self.alpha_max <= 1:
            raise UserError(f"alpha_max must be in [0, 1], got {self.alpha_max:g}: 0.1 is usual")
        if not self.eta >= 1:
            raise UserError(f"eta must be at least 1, got {self.eta:g}: 1.05 is usual")
        if not 0 < self.beta < 1:
            raise UserError(f"beta must be in (0, 1), got {self.beta:g}: 0.9 is usual")

    def trials(self, classes: int) -> int:
        """Returns restarts times the number of targets, if any."""
        if self.targets is None:
            return self.restarts
        return self.restarts * min(self.targets, classes - 1)

    def start(self, logits_fn: LogitsFn, problem: Problem) -> FabState:
        """Starts at the natural image or at a random one around it. The first step judges it."""
        current = problem.image
        if self.restarts > 1:
            drawn = jax.vmap(random_start, (None, 0, 0, None))(
                problem.threat, problem.key, problem.image, 0.5
            )
            current = where(problem.number % self.restarts == 0, current, drawn)
        trials = len(current)
        nothing = Attacked(
            current, jnp.zeros(trials, bool), jnp.full(trials, -jnp.inf, current.dtype)
        )
        return FabState(current, nothing)

    def step(
        self, logits_fn: LogitsFn, problem: Problem, state: FabState, number: jax.Array
    ) -> FabState:
        """Crosses the nearest boundary; goes part of the way back if the image is adversarial."""
        here, leads, gradients = self._linearise(logits_fn, problem, state.current)
        step = functools.partial(
            boundary_step, problem.threat, alpha_max=self.alpha_max, eta=self.eta
        )
        moved = jax.vmap(step)(problem.image, state.current, leads, gradients)
        there = judge_forward(logits_fn, moved, problem, margin)
        back = problem.image + self.beta * (moved - problem.image)
        worst = _worst_within(problem, _worst_within(problem, state.worst, here), there)
        return FabState(where(there.is_adversarial, back, moved), worst)

    def _linearise(
        self, logits_fn: LogitsFn, problem: Problem, images: jax.Array
    ) -> tuple[Attacked, jax.Array, jax.Array]:
        """Judges the images and linearises the network at them.

        Returns:
            The judged images; for T classes their logit minus the label's, (B, T); and the
            gradients of these differences, (B, T, H, W, C). The gradients take T parallel backward
            passes.
        """
        if self.targets is None:
            rivals = problem.order[:, 1:]
        else:
            target = 1 + problem.number // self.restarts
            rivals = jnp.take_along_axis(problem.order, target[:, None], axis=1)
        label = problem.label[:, None]
        logits, pull_back = jax.vjp(logits_fn, images)
        one_hot = functools.partial(jax.nn.one_hot, num_classes=logits.shape[1], dtype=logits.dtype)
        (gradients,) = jax.vmap(pull_back, 1, 1)(one_hot(rivals) - one_hot(label))
        leads = jnp.take_along_axis(logits, rivals, 1) - jnp.take_along_axis(logits, label, 1)
        is_adversarial = ~jax.vmap(is_correct)(logits, problem.label)
        here = Attacked(images, is_adversarial, jax.vmap(margin)(logits, problem.label))
        return here, leads, finite(gradients)


def _worst_within(problem: Problem, old: Attacked, new: Attacked) -> Attacked:
    """Returns `worse(old, new)` where the new image is within epsilon, else the old one."""
    far = jax.vmap(distance, (None, 0, 0))(problem.threat, new.image, problem.image)
    return where(far <= problem.threat.epsilon, worse(old, new), old)


def boundary_step(
    threat: Threat,
    natural: jax.Array,
    current: jax.Array,
    leads: jax.Array,
    gradients: jax.Array,
    *,
    alpha_max: float,
    eta: float,
) -> jax.Array:
    """Takes one image across the nearest of T linearised boundaries.

    Args:
        threat: its norm measures distance; its radius is not used.
        natural: (H, W, C) in [0, 1].
        current: (H, W, C) in [0, 1], the image at which the network was linearised.
        leads: (T,), each class's logit minus the label's at `current`.
        gradients: (T, H, W, C), of the leads.
        alpha_max: largest weight of the move from `natural`; the move from `current` has the rest.
        eta: length of both moves, in units of the distance to the hyperplane.

    Returns:
        (H, W, C) in [0, 1].
    """
    # The dual norm of a gradient is its slope in the steepest direction of length one.
    slopes = jax.vmap(lambda g: jnp.sum(g * steepest(threat, g)))(gradients)
    nearest = jnp.argmin(jnp.abs(leads) / jnp.maximum(slopes, _smallest(slopes)))
    lead, gradient = leads[nearest], gradients[nearest]
    lead_at_natural = lead + jnp.sum(gradient * (natural - current))
    from_current = move_to_hyperplane(threat.norm, current, lead, gradient)
    from_natural = move_to_hyperplane(threat.norm, natural, lead_at_natural, gradient)

    def length(move: jax.Array) -> jax.Array:
        return jnp.maximum(distance(threat, move, jnp.zeros_like(move)), _SMALLEST_MOVE)

    share = length(from_current) / (length(from_current) + length(from_natural))
    alpha = jnp.minimum(share, alpha_max)
    return clip_to_box(
        (1 - alpha) * (current + eta * from_current) + alpha * (natural + eta * from_natural)
    )


def move_to_hyperplane(
    norm: Norm, image: jax.Array, value: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Returns the shortest move that takes a linear function to zero within the pixel box.

    Every pixel moves in the direction that brings the function closer to zero. It moves by
    `amount`, at most the `room` that it has in the box. The sum of |gradient| * amount is |value|.
    The norms differ in the amounts. For L-inf they are all the same, for L2 proportional to
    |gradient|, each until the room is used up. For L1 one pixel after another uses up its room, the
    largest |gradient| first.

    Args:
        norm: the norm in which the move is shortest.
        image: one image of any shape, in [0, 1].
        value: () the function at the image.
        gradient: its gradient, of the image's shape.

    Returns:
        The move, same shape and dtype; `image` + move is in [0, 1] to the rounding of the dtype. If
        the function is zero nowhere in the box, the move goes to where it is nearest to zero.

    References:
        Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
        attack", 2020, section 2.
    """
    direction = -jnp.sign(value) * jnp.sign(gradient)
    room = jnp.where(direction > 0, 1.0 - image, jnp.where(direction < 0, image, 0.0))
    # The gradient of a confident network may be as small as 1e-30, whose square is zero.
    largest = jnp.max(jnp.abs(gradient))
    scale = jnp.where(largest > 0, largest, 1.0)
    weight, wanted = jnp.abs(gradient) / scale, jnp.abs(value) / scale
    match norm:
        case "linf":
            amount = jnp.minimum(_level(room, weight, wanted), room)
        case "l2":
            full_at = room / jnp.maximum(weight, _smallest(weight))
            amount = jnp.minimum(_level(full_at, jnp.square(weight), wanted) * weight, room)
        case "l1":
            amount = _largest_first(room, weight, wanted)
    return direction * amount


def _level(full_at: jax.Array, slope: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns the level t at which sum(slope * min(t, full_at)) is `wanted`.

    If the sum is less than `wanted` at every level, the result is at least the largest `full_at`.

    The sum is concave and piecewise linear in t, that is, the minimum of the lines through its
    pieces. So t is the largest of the levels at which one of these lines reaches `wanted`. Newton's
    method finds it: each round goes to the level at which the line of the present piece reaches
    `wanted`. The levels rise from 0 to t in about ten rounds; the images of a batch stop together.
    Sorting all pixels, as the authors do, takes a CPU longer than the gradient of a small network.
    """

    def reach(level: jax.Array) -> jax.Array:
        full = full_at <= level
        filled = jnp.sum(jnp.where(full, slope * full_at, 0.0))
        rising = jnp.sum(jnp.where(full, 0.0, slope))
        further = (wanted - filled) / jnp.maximum(rising, _smallest(rising))
        # Infinity times a weight of zero would be NaN.
        return jnp.clip(further, 0.0, jnp.finfo(further.dtype).max)

    def rises(levels: tuple[jax.Array, jax.Array]) -> jax.Array:
        before, now = levels
        return now > before

    start = jnp.zeros_like(wanted)
    before, now = jax.lax.while_loop(rises, lambda to: (to[1], reach(to[1])), (start, reach(start)))
    return jnp.maximum(before, now)


def _largest_first(room: jax.Array, weight: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns amounts with sum(weight * amount) = wanted; large weights use up their room first."""
    order = jnp.argsort(weight, axis=None, descending=True)
    heavy = weight.ravel()[order]
    filled = heavy * room.ravel()[order]
    before = jnp.cumsum(filled) - filled
    amount = jnp.maximum(wanted - before, 0.0) / jnp.maximum(heavy, _smallest(heavy))
    unsorted = jnp.zeros_like(amount).at[order].set(amount)
    return jnp.minimum(unsorted.reshape(room.shape), room)


def _smallest(values: jax.Array) -> jax.Array:
    """Returns the smallest positive normal number of the dtype, to divide by instead of zero."""
    return jnp.asarray(jnp.finfo(values.dtype).tiny, values.dtype)
