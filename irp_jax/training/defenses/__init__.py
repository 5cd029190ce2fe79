"""How a network is hardened while it learns: what it is shown, and what is minimised there."""

import dataclasses

from irp_jax.training.defenses.choice import MANY_STEPS, Choice
from irp_jax.training.defenses.clean import Clean
from irp_jax.training.defenses.consistency import Consistency
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
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


def build(choice: Choice) -> Defense:
    """The defence that was chosen."""
    defense = DEFENSES[choice.name]
    if isinstance(defense, Pgd | Trades):
        return dataclasses.replace(defense, steps=choice.steps)
    return defense


__all__ = [
    "DEFENSES",
    "MANY_STEPS",
    "Batch",
    "Choice",
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
