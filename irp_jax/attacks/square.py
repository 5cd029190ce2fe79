"""Square Attack: random search with square patches, without gradients.

Each query proposes to change one square of the best image so far. The proposal is kept if the loss
grows. The squares shrink during the search. Masked gradients do not mislead this attack: a network
that withstands PGD but not Square is not robust.

For L-inf the attack starts from vertical stripes. A square gets the largest change allowed, with
one sign per channel. For L2 and L1 a square gets a bump in one half and a hollow in the other. A
second square is cleared, so that the length of the change stays the same.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.attacks.attack import Attacked, Problem, judge_forward, where, worse
from irp_jax.attacks.losses import LogitsFn, Loss, cross_entropy, margin
from irp_jax.attacks.threat import Threat, project
from irp_jax.errors import UserError, unknown

SquareLoss = Literal["margin", "ce"]
LOSSES: dict[str, Loss] = {"margin": margin, "ce": cross_entropy}

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Query numbers. After each, the area of a square is halved."""

POWERS = {"l2": 2, "l1": 1}
"""Exponents p of the p-norms."""

FALLS = {"l2": 2, "l1": 4}
"""Exponents of the decay of a bump."""

_TINY = 1e-12
"""Keeps a pattern of length zero at zero, without a division by zero."""


class SquareState(NamedTuple):
    """The state of a batch of trials.

    Attributes:
        worst: the worst image so far, which the next proposal changes.
    """

    worst: Attacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    """Random search over square patches; an `attacks.attack.Attack`.

    Attributes:
        name: the name in reports and on the command line.
        steps: queries of one trial, one forward pass each; the first judges the start.
        restarts: trials, each with its own random numbers.
        p_init: fraction of the image that a square covers at first; in (0, 1].
        loss: the loss that must grow for a proposal to be kept: margin or ce (cross-entropy).

    Raises:
        UserError: a setting is invalid; the message names it.

    References:
        Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via
        random search", 2020, algorithms 1 to 3; for L1, Croce & Hein, "Mind the box: l1-APGD for
        sparse adversarial attacks on image classifiers", 2021. As in AutoAttack, the
        schedule of the squares counts queries and is not rescaled to the number of steps.
    """

    name: str = "square"
    steps: int = 5000
    restarts: int = 1
    p_init: float = 0.8
    loss: SquareLoss = "margin"

    def __post_init__(self) -> None:
        for setting in ("steps", "restarts"):
            if getattr(self, setting) < 1:
                raise UserError(f"{setting} must be at least 1, got {getattr(self, setting)}")
        if not 0 < self.p_init <= 1:
            raise UserError(f"p_init must be in (0, 1], got {self.p_init:g}: 0.8 is usual")
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    def trials(self, classes: int) -> int:
        """Returns the number of restarts."""
        return self.restarts

    def start(self, logits_fn: LogitsFn, problem: Problem) -> SquareState:
        """Starts with stripes or tiles over the whole image. The first step judges them."""
        keys = jax.vmap(jax.random.fold_in, (0, None))(problem.key, 0)
        images = jax.vmap(first_image, (None, 0, 0))(problem.threat, keys, problem.image)
        trials = len(images)
        nothing = jnp.full(trials, -jnp.inf, images.dtype)
        return SquareState(Attacked(images, jnp.zeros(trials, bool), nothing))

    def step(
        self, logits_fn: LogitsFn, problem: Problem, state: SquareState, number: jax.Array
    ) -> SquareState:
        """Proposes a change of one square and keeps it if the image becomes worse."""
        best = state.worst.image
        keys = jax.vmap(jax.random.fold_in)(problem.key, number + 1)
        sides = side_of_square(problem.threat, number, self.p_init, *best.shape[1:3])
        propose = functools.partial(
            _repaint if problem.threat.norm == "linf" else _move_change, problem.threat
        )
        proposals = jax.vmap(propose)(keys, problem.image, best, sides)
        tried = where(number == 0, best, proposals)
        return SquareState(
            worse(state.worst, judge_forward(logits_fn, tried, problem, LOSSES[self.loss]))
        )


def side_of_square(
    threat: Threat, number: jax.Array, p_init: float, height: int, width: int
) -> jax.Array:
    """Returns the side of the squares of a query.

    Args:
        threat: for L2 and L1, sides are odd and at least 3, so that squares have a middle.
        number: int32 of any shape, the query: 0 judges the start, from 1 on squares are tried.
        p_init: fraction of the image that a square covers at first.
        height, width: of the image, in pixels.

    Returns:
        int32 of the same shape, in pixels, at most the smaller side of the image.
    """
    halvings = jnp.sum(number[..., None] > jnp.asarray(HALVINGS), axis=-1)
    share = p_init * 0.5 ** halvings.astype(jnp.float32)
    side = jnp.round(jnp.sqrt(share * (height * width))).astype(jnp.int32)
    side = jnp.maximum(side, 1) if threat.norm == "linf" else jnp.maximum(side, 3) // 2 * 2 + 1
    return jnp.minimum(side, min(height, width))


def first_image(threat: Threat, key: jax.Array, natural: jax.Array) -> jax.Array:
    """Returns the start: for L-inf vertical stripes one pixel wide, else tiled bumps and hollows.

    Args:
        threat: the ball.
        key: a PRNG key.
        natural: (H, W, C) in [0, 1].

    Returns:
        (H, W, C) in [0, 1], within epsilon of `natural`.
    """
    height, width, channels = natural.shape
    if threat.norm == "linf":
        stripes = _signs(jax.random.uniform(key, (1, width, channels), natural.dtype))
        return project(threat, natural + threat.epsilon * stripes, natural)
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    draws = jax.random.uniform(key, (down, 1, across, 1, 1 + channels), natural.dtype)
    turned, signs = draws[..., 0] < 0.5, _signs(draws[..., 1:])
    pattern = bumps(threat, jnp.arange(side)[:, None], jnp.arange(side), side, natural.dtype)
    tiles = jnp.where(turned, pattern.T[:, None, :], pattern[:, None, :])[..., None] * signs
    tiles = tiles.reshape(down * side, across * side, channels)
    rows, columns = height - down * side, width - across * side
    change = jnp.pad(
        tiles, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    )
    return _with_change(threat, natural, change)


def _repaint(
    threat: Threat, key: jax.Array, natural: jax.Array, best: jax.Array, side: jax.Array
) -> jax.Array:
    """Returns an L-inf proposal: one square at the upper or lower bound, chosen per channel."""
    draws = jax.random.uniform(key, (2 + natural.shape[2],), natural.dtype)
    inside = _inside(*_square(draws[:2], natural, side), side)
    # A change of twice epsilon reaches the bound from anywhere in the ball.
    step = 2 * threat.epsilon * _signs(draws[2:])
    return project(threat, jnp.where(inside, best + step, best), natural)


def _move_change(
    threat: Threat, key: jax.Array, natural: jax.Array, best: jax.Array, side: jax.Array
) -> jax.Array:
    """Returns an L2 or L1 proposal: clears one square and moves its length to another."""
    draws = jax.random.uniform(key, (5 + natural.shape[2],), natural.dtype)
    rows, columns = _square(draws[:2], natural, side)
    here = _inside(rows, columns, side)
    cleared = _inside(*_square(draws[2:4], natural, side), side)
    turned, signs = draws[4] < 0.5, _signs(draws[5:])
    down, across = jnp.where(turned, columns, rows), jnp.where(turned, rows, columns)
    pattern = bumps(threat, down, across, side, natural.dtype)

    # Lengths are per channel and to the power p, so that they add up.
    channels, power = natural.shape[2], POWERS[threat.norm]
    change = best - natural
    left_over = threat.epsilon**power - jnp.sum(jnp.abs(change) ** power)
    saved = jnp.sum(jnp.abs(jnp.where(here | cleared, change, 0.0)) ** power, axis=(0, 1))
    length = (jnp.maximum(left_over, 0.0) / channels + saved) ** (1 / power)
    if threat.norm == "l1":
        # This exceeds epsilon. The projection then shortens the change of the whole image.
        length = length * channels
    added = pattern[..., None] * signs + _unit(jnp.where(here, change, 0.0), power)
    change = jnp.where(here, length * _unit(added, power), jnp.where(cleared, 0.0, change))
    return _with_change(threat, natural, change)


def _unit(change: jax.Array, power: int) -> jax.Array:
    """Scales a change (H, W) or (H, W, C) to length one in each channel; zero stays zero."""
    return change / (jnp.sum(jnp.abs(change) ** power, axis=(0, 1)) ** (1 / power) + _TINY)


def _with_change(threat: Threat, natural: jax.Array, change: jax.Array) -> jax.Array:
    """Adds a change to the natural image: for L2 of length epsilon, for L1 cut down to it."""
    if threat.norm == "l2":
        change = change * (threat.epsilon / (jnp.sqrt(jnp.sum(jnp.square(change))) + _TINY))
    return project(threat, natural + change, natural)


def _signs(draws: jax.Array) -> jax.Array:
    """Converts numbers drawn from [0, 1) to 1 or -1, with equal probability."""
    return jnp.where(draws < 0.5, -1.0, 1.0).astype(draws.dtype)


def _square(draws: jax.Array, image: jax.Array, side: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Places a square: returns each pixel's row (H, 1) and column (W,), counted from its corner.

    With two numbers drawn from [0, 1), all places within the image are equally likely.
    """
    height, width, _ = image.shape
    places = jnp.asarray([height, width]) - side + 1
    top, left = jnp.floor(draws * places.astype(draws.dtype)).astype(jnp.int32)
    return jnp.arange(height)[:, None] - top, jnp.arange(width) - left


def _inside(rows: jax.Array, columns: jax.Array, side: jax.Array | int) -> jax.Array:
    """Returns which pixels are in the square, (H, W, 1) bool."""
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return inside[..., None]


def bumps(
    threat: Threat, rows: jax.Array, columns: jax.Array, side: jax.Array | int, dtype: jnp.dtype
) -> jax.Array:
    """Returns the pattern of L2 and L1 squares: a bump above, a hollow below.

    Each is largest in its middle and falls off in square rings, in ring k (counted from 1) by
    1 / k**2 for L2 and 1 / k**4 for L1.

    Args:
        threat: its norm determines how steep the pattern is and how length is measured.
        rows, columns: int32, places in the square. They broadcast to the shape of the result.
            Places outside the square are allowed. Exchange the two to transpose the pattern.
        side: of the square in pixels.
        dtype: of the result.

    Returns:
        The pattern there, of length one over the square, both halves of equal length; zero outside.

    References:
        Andriushchenko et al., "Square Attack", 2020, section 4.2.
    """
    inside = _inside(rows, columns, side)[..., 0]
    below = rows >= side // 2
    height = jnp.where(below, side - side // 2, side // 2)
    row = rows - jnp.where(below, side // 2, 0)
    ring = jnp.maximum(jnp.abs(row - height // 2), jnp.abs(columns - side // 2))
    power = POWERS[threat.norm]
    outermost = max(inside.shape) // 2 + 1
    falls = 1.0 / np.arange(1, outermost + 1) ** FALLS[threat.norm]
    depth = jnp.asarray(np.concatenate([[0.0], np.cumsum(falls)]), dtype)
    # The height at a ring is the sum of the falls from it outwards.
    raised = jnp.where(inside, depth[side // 2 + 1] - depth[jnp.minimum(ring, outermost)], 0.0)
    bump = _unit(jnp.where(below, 0.0, raised), power)
    hollow = _unit(jnp.where(below, raised, 0.0), power)
    return _unit(bump - hollow, power)
