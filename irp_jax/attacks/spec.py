"""The settings of an attack as a user gives them, checked and ready to be written down."""

import dataclasses
from typing import Literal, NamedTuple

import jax

from irp_jax.attacks.pgd import STEP_RATIO
from irp_jax.attacks.threat import Norm, Threat
from irp_jax.errors import UserError, unknown

AttackName = Literal["pgd", "fgsm", "none"]
ATTACKS: tuple[AttackName, ...] = ("pgd", "fgsm", "none")


class Schedule(NamedTuple):
    """PGD as numbers, none of them compiled in: FGSM is one step from the image itself."""

    steps: int
    step_size: float | jax.Array
    start_scale: float
    restarts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """Which attack, and how hard: everything an accuracy under attack depends on.

    Raises:
        UserError: a value that cannot be meant; the message names it.
    """

    name: AttackName = "pgd"
    """pgd, fgsm (one step of epsilon from the image itself) or none (natural accuracy alone)."""
    norm: Norm = "linf"
    """linf or l2."""
    epsilon: float = 8 / 255
    """Radius in pixel units of [0, 1]."""
    steps: int = 10
    """Gradient steps of each restart."""
    step_size: float | None = None
    """Length of a step in pixel units; epsilon / 4 if not given, 2/255 for the usual 8/255."""
    restarts: int = 1
    """Random starts for each image; the worst counts."""
    seed: int = 0
    """Seed of the random starts."""

    def __post_init__(self) -> None:
        if self.name not in ATTACKS:
            raise unknown("attack", self.name, ATTACKS)
        Threat(norm=self.norm, epsilon=self.epsilon)
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if self.restarts < 1:
            raise UserError(f"restarts must be at least 1, got {self.restarts}")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, got {self.seed}")
        if self.step_size is not None and not 0 < self.step_size <= 2 * self.epsilon:
            raise UserError(
                f"step size must be in (0, 2 epsilon] = (0, {2 * self.epsilon:.4g}], got "
                f"{self.step_size:g}: for instance epsilon / 4 = {self.epsilon / 4:.4g}"
            )

    @property
    def threat(self) -> Threat:
        """The ball."""
        return Threat(norm=self.norm, epsilon=self.epsilon)

    @property
    def schedule(self) -> Schedule:
        """The steps in force; FGSM draws nothing, so a second restart would be the first again."""
        if self.name == "fgsm":
            return Schedule(steps=1, step_size=self.epsilon, start_scale=0.0, restarts=1)
        step_size = self.epsilon * STEP_RATIO if self.step_size is None else self.step_size
        return Schedule(
            steps=self.steps, step_size=step_size, start_scale=1.0, restarts=self.restarts
        )

    def describe(self) -> dict[str, str | int | float | bool]:
        """What is written beside the accuracy: the values in force, as JSON takes them."""
        if self.name == "none":
            return {"name": "none"}
        schedule = self.schedule
        return {
            "name": self.name,
            "norm": self.norm,
            "epsilon": self.epsilon,
            "steps": schedule.steps,
            "step_size": float(schedule.step_size),
            "restarts": schedule.restarts,
            "random_start": schedule.start_scale > 0,
            "loss": "cross-entropy",
            "seed": self.seed,
        }
