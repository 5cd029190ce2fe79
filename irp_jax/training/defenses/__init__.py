"""How a network is hardened while it learns: what it is shown, and what is minimised there."""

import dataclasses

from irp_jax.config import Config
from irp_jax.training.defenses.choice import MANY_STEPS, Choice
from irp_jax.training.defenses.clean import Clean
from irp_jax.training.defenses.consistency import Consistency
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.defenses.fast import Fast
from irp_jax.training.defenses.gat import Gat
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
        Gat(),
        Pgd(),
        Trades(),
    )
}
"""By their names on the command line, each with its paper's settings."""


def build(choice: Choice, config: Config) -> Defense:
    """The defence that was chosen, with the settings of a run."""
    defense = DEFENSES[choice.name]
    weight = config.robustness_weight
    match defense:
        case Fast():
            return dataclasses.replace(
                defense, noise=config.noise, clean_weight=config.clean_weight
            )
        case Pgd():
            return dataclasses.replace(
                defense, steps=choice.steps, clean_weight=config.clean_weight
            )
        case Trades():
            beta = defense.beta if weight is None else weight
            return dataclasses.replace(defense, steps=choice.steps, beta=beta)
        case Gat():
            weight = defense.weight if weight is None else weight
            return dataclasses.replace(defense, weight=weight, rise=config.robustness_rise)
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
    "Gat",
    "GradAlign",
    "Mep",
    "Perturbed",
    "Pgd",
    "Trades",
    "Trained",
    "build",
    "recall",
]
