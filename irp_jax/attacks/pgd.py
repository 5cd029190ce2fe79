"""Projected gradient descent: steps of steepest ascent from a random start inside the ball."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.attacks.ascent import step
from irp_jax.attacks.attack import Attacked, Problem, judge, worse
from irp_jax.attacks.losses import LogitsFn, Loss, cross_entropy
from irp_jax.attacks.threat import random_start
from irp_jax.errors import UserError

STEP_RATIO = 0.25
"""Default step over epsilon: 2/255 for 8/255, the protocol the literature reports PGD-10 with."""


LAST = "-last"
"""What ends the name of an attack whose last iterate alone counts."""


class PgdState(NamedTuple):
    """Runs under way; every leaf has a leading axis B.

    Attributes:
        current: (B, H, W, C), the images to step from, not judged yet.
        worst: the worst images judged so far.
    """

    current: jax.Array
    worst: Attacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pgd:
    """PGD as an `Attack`.

    Every image on the way counts, the start and the last one included: the worst case is what
    robustness means. What is found is the first image that the network gets wrong, else the one of
    highest loss. With `last_only` the last iterate of each restart alone counts, as in most
    published code: the same images are visited, and no more of them can be wrong.

    Attributes:
        name: as reports have it.
        gradient_steps: of one restart.
        restarts: independent starts for each image.
        step_size: length of a step in pixel units; None for `step_ratio` times epsilon.
        step_ratio: see `step_size`.
        start_scale: radius of the random start over epsilon; 0 starts at the image.
        loss: what to climb.
        last_only: whether iterates on the way do not count.

    Raises:
        UserError: a value that cannot be meant; the message names it.

    References:
        Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018,
        section 2.1.
    """

    name: str = "pgd"
    gradient_steps: int = 10
    restarts: int = 1
    step_size: float | None = None
    step_ratio: float = STEP_RATIO
    start_scale: float = 1.0
    loss: Loss = cross_entropy
    last_only: bool = False

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
    def draws(self) -> str:
        """Both ways of counting start alike."""
        return self.name.removesuffix(LAST)

    @property
    def steps(self) -> int:
        """One more than gradient steps: an image is judged on the way to the next."""
        return self.gradient_steps + 1

    def trials(self, classes: int) -> int:
        """As many as restarts."""
        return self.restarts

    def start(self, logits_fn: LogitsFn, problem: Problem) -> PgdState:
        """See `Attack`."""
        draw = jax.vmap(random_start, (None, 0, 0, None))
        starts = draw(problem.threat, problem.key, problem.image, self.start_scale)
        # Whatever is judged first takes the place of this, since no loss is below minus infinity.
        count = len(problem.label)
        nothing = Attacked(starts, jnp.zeros(count, bool), jnp.full(count, -jnp.inf, starts.dtype))
        return PgdState(starts, nothing)

    def step(
        self, logits_fn: LogitsFn, problem: Problem, state: PgdState, number: jax.Array
    ) -> PgdState:
        """See `Attack`."""
        threat = problem.threat
        judged, gradient = judge(logits_fn, state.current, problem, self.loss)
        length = self.step_ratio if self.step_size is None else self.step_size / threat.epsilon
        ahead = step(threat, state.current, problem.image, gradient, length)
        if self.last_only:
            counts = number == self.gradient_steps
            judged = judged._replace(
                is_adversarial=judged.is_adversarial & counts,
                loss=jnp.where(counts, judged.loss, -jnp.inf),
            )
        return PgdState(ahead, worse(state.worst, judged))
