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
"""Default step size in units of epsilon: 2/255 for 8/255, as the literature reports PGD-10."""


LAST = "-last"
"""Suffix of the name of an attack that counts only the last iterate."""


class PgdState(NamedTuple):
    """The state of a batch of trials; every leaf has a leading axis B.

    Attributes:
        current: (B, H, W, C), the images to step from, not judged yet.
        worst: the worst images judged so far.
    """

    current: jax.Array
    worst: Attacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pgd:
    """PGD as an `Attack`.

    Every iterate counts, including the start and the last one, because robustness is defined by the
    worst case. The result is the first iterate that the network misclassifies, else the one of
    highest loss. With `last_only` only the last iterate of each restart counts, as in most
    published code. The iterates are the same, so at most as many images are broken.

    Attributes:
        name: the name in reports.
        gradient_steps: number of gradient steps of one restart.
        restarts: independent starts for each image.
        step_size: length of a step in pixel units; None for `step_ratio` times epsilon.
        step_ratio: see `step_size`.
        start_scale: radius of the random start in units of epsilon; 0 starts at the natural image.
        loss: the loss to increase.
        last_only: whether only the last iterate counts.

    Raises:
        UserError: a setting is invalid; the message names it.

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
        if not callable(self.loss):
            raise UserError(
                f"loss must be a function such as attacks.cross_entropy, got {self.loss!r}"
            )
        length = self.step_ratio if self.step_size is None else self.step_size
        if not 0 < length < math.inf:
            raise UserError(f"the length of a step must be positive, got {length:g}")
        if not 0 <= self.start_scale <= 1:
            raise UserError(f"start_scale must be in [0, 1], got {self.start_scale:g}")

    @property
    def draws(self) -> str:
        """The name without "-last": both variants draw the same random starts."""
        return self.name.removesuffix(LAST)

    @property
    def steps(self) -> int:
        """`gradient_steps` + 1.

        Each step judges the current image, then moves. The extra step judges the last iterate.
        """
        return self.gradient_steps + 1

    def trials(self, classes: int) -> int:
        """Returns the number of restarts."""
        return self.restarts

    def start(self, logits_fn: LogitsFn, problem: Problem) -> PgdState:
        """See `Attack`."""
        draw = jax.vmap(random_start, (None, 0, 0, None))
        starts = draw(problem.threat, problem.key, problem.image, self.start_scale)
        # A placeholder: at a loss of minus infinity, the first image that counts replaces it.
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
