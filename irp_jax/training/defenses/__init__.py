"""How a network is hardened while it learns: what it is shown, and what is minimised there."""

import dataclasses

from irp_jax.training.defenses.clean import Clean
from irp_jax.training.defenses.consistency import Consistency
from irp_jax.training.defenses.defense import Defense, Forward, Perturbed, Trained
from irp_jax.training.defenses.fast import Fast
from irp_jax.training.defenses.gradalign import GradAlign
from irp_jax.training.defenses.memory import recall
from irp_jax.training.defenses.mep import Mep
from irp_jax.training.defenses.pgd import Pgd
from irp_jax.training.defenses.trades import Trades

DEFENSES: dict[str, Defense] = {
    defense.name: defense
    for defense in (
        Clean(),
        Fast(name="fgsm"),
        Fast(name="fgsm-rs"),
        Fast(name="n-fgsm"),
        Consistency(),
        Mep(),
        GradAlign(),
        Pgd(),
        Trades(),
    )
}
"""By their names on the command line, each with its paper's settings."""


def build(name: str, attack_steps: int) -> Defense:
    """A defence by its name.

    Args:
        name: in `DEFENSES`.
        attack_steps: gradient steps of those that take many.
    """
    defense = DEFENSES[name]
    return dataclasses.replace(defense, steps=attack_steps) if isinstance(defense, Pgd) else defense


__all__ = [
    "DEFENSES",
    "Clean",
    "Consistency",
    "Defense",
    "Fast",
    "Forward",
    "GradAlign",
    "Mep",
    "Perturbed",
    "Pgd",
    "Trades",
    "Trained",
    "build",
    "recall",
]
