"""The settings of an evaluation as a user gives them, checked and ready for JSON."""

import dataclasses
from typing import Any, Literal, get_args

from irp_jax.attacks.apgd import Apgd
from irp_jax.attacks.attack import Attack
from irp_jax.attacks.ensemble import published
from irp_jax.attacks.fab import Fab
from irp_jax.attacks.losses import margin
from irp_jax.attacks.pgd import STEP_RATIO, Pgd
from irp_jax.attacks.square import Square
from irp_jax.attacks.threat import Norm, Threat
from irp_jax.errors import UserError, unknown

AttackName = Literal[
    "pgd", "pgd-last", "fgsm", "pgd-margin", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t",
    "square", "autoattack", "none",
]  # fmt: skip
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
STEPS = {
    "pgd": 10, "pgd-last": 10, "pgd-margin": 10, "apgd-ce": 100, "apgd-dlr": 100, "apgd-t": 100,
    "fab": 100, "fab-t": 100, "square": 5000,
}  # fmt: skip
"""Default number of steps of one trial. Attacks not listed have a fixed number."""
STEPPED = ("pgd", "pgd-last", "pgd-margin")
"""Attacks whose step size can be chosen."""
ONE_START = ("fgsm", "autoattack", "none")
"""Attacks whose numbers of steps and restarts are fixed."""
MOST = 10**6
"""Upper bound on steps and restarts. They are counted in int32, and APGD plans all its steps
ahead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """The attack and its settings: everything that an accuracy under attack depends on.

    Raises:
        UserError: a setting is invalid; the message names it.
    """

    name: AttackName = "pgd"
    """pgd, pgd-last (only the last iterate counts), fgsm (one step from the natural image),
    pgd-margin (PGD on the margin loss), apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, autoattack,
    or none (natural accuracy only)."""
    norm: Norm = "linf"
    """linf, l2 or l1."""
    epsilon: float = 8 / 255
    """Radius in pixel units of [0, 1]."""
    steps: int | None = None
    """Steps of each trial; None for the default: 10 for pgd, 100 for apgd and fab, 5000 for
    square."""
    step_size: float | None = None
    """Length of a step of pgd, pgd-last and pgd-margin in pixel units; epsilon / 4 if not given."""
    restarts: int = 1
    """Random starts for each image. An image broken from any of them counts as broken."""
    version: str = "standard"
    """The version of autoattack: standard, plus or rand."""
    seed: int = 0
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        if self.name not in ATTACKS:
            raise unknown("attack", self.name, ATTACKS)
        Threat(norm=self.norm, epsilon=self.epsilon)
        published(self.version, self.norm)
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
            if value is not None and value > MOST:
                raise UserError(f"{name} must be at most {MOST:,}, got {value}")
        unused = {
            "steps": self.steps is not None and self.name in ONE_START,
            "restarts": self.restarts > 1 and self.name in ONE_START,
            "step size": self.step_size is not None and self.name not in STEPPED,
            "version": self.version != "standard" and self.name != "autoattack",
        }
        for setting, given in unused.items():
            if given:
                raise UserError(f"{self.name} has no {setting} to choose: leave it out")
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
    def attacks(self) -> tuple[Attack, ...]:
        """The attacks to run, in order."""
        name, restarts, steps = self.name, self.restarts, self.steps or STEPS.get(self.name, 1)
        match name:
            case "none":
                return ()
            case "autoattack":
                return published(self.version, self.norm)
            case "fgsm":
                return (Pgd(name=name, gradient_steps=1, step_ratio=1.0, start_scale=0.0),)
            case "pgd" | "pgd-last":
                return (
                    Pgd(
                        name=name, gradient_steps=steps, restarts=restarts,
                        step_size=self.step_size, last_only=name == "pgd-last",
                    ),
                )  # fmt: skip
            case "pgd-margin":
                return (
                    Pgd(
                        name=name, gradient_steps=steps, restarts=restarts,
                        step_size=self.step_size, loss=margin,
                    ),
                )  # fmt: skip
            case "apgd-ce":
                return (Apgd(name=name, loss="ce", steps=steps, restarts=restarts),)
            case "apgd-dlr":
                return (Apgd(name=name, loss="dlr", steps=steps, restarts=restarts),)
            case "apgd-t":
                targets = 5 if self.norm == "l1" else 9
                return (
                    Apgd(
                        name=name, loss="targeted-dlr", steps=steps, restarts=restarts,
                        targets=targets,
                    ),
                )  # fmt: skip
            case "fab":
                return (Fab(name=name, targets=None, steps=steps, restarts=restarts),)
            case "fab-t":
                return (Fab(name=name, targets=9, steps=steps, restarts=restarts),)
            case "square":
                return (Square(steps=steps, restarts=restarts),)

    def describe(self) -> dict[str, Any]:
        """Returns the settings in force, as JSON values, to be stored with the accuracy."""
        if self.name == "none":
            return {"name": "none"}
        facts: dict[str, Any] = {"name": self.name, "norm": self.norm, "epsilon": self.epsilon}
        if self.name == "autoattack":
            facts["version"] = self.version
        else:
            facts["steps"] = self.steps or STEPS.get(self.name, 1)
        if self.name in STEPPED:
            facts["step_size"] = float(self.step_size or self.epsilon * STEP_RATIO)
        if self.name == "fgsm":
            facts["step_size"] = self.epsilon
        if self.name not in ONE_START:
            facts["restarts"] = self.restarts
        return facts | {"seed": self.seed}
