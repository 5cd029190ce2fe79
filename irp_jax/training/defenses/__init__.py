"""The defenses of training: how a batch is perturbed, and which loss is minimised."""

import dataclasses

from irp_jax.config import SETTINGS_OF, Config
from irp_jax.training.defenses.choice import MANY_STEPS, Choice
from irp_jax.training.defenses.consistency import Consistency
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.defenses.fast import Fast
from irp_jax.training.defenses.gat import Gat
from irp_jax.training.defenses.gradalign import GradAlign
from irp_jax.training.defenses.memory import recall
from irp_jax.training.defenses.mep import Mep
from irp_jax.training.defenses.none import NoDefense
from irp_jax.training.defenses.pgd import PgdTraining
from irp_jax.training.defenses.trades import Trades

DEFENSES: dict[str, Defense] = {
    defense.name: defense
    for defense in (
        NoDefense(),
        Fast(name="fgsm"),
        Fast(name="fgsm-rs"),
        Fast(name="n-fgsm"),
        Consistency(),
        Mep(),
        GradAlign(),
        Gat(),
        PgdTraining(),
        Trades(),
    )
}
"""Name on the command line -> defense with its paper's settings."""


def build(choice: Choice, config: Config) -> Defense:
    """Returns the chosen defense with the settings of a run that it uses.

    A setting that is None keeps the paper's value.
    """
    defense = DEFENSES[choice.name]
    given = {
        FIELDS.get((choice.name, setting), setting): getattr(config, setting)
        for setting in SETTINGS_OF["defense"].get(choice.name, ())
    }
    if choice.name in MANY_STEPS:
        given["steps"] = choice.steps
    return dataclasses.replace(defense, **{k: v for k, v in given.items() if v is not None})


FIELDS = {
    ("pgd", "attack_steps"): "steps",
    ("trades", "attack_steps"): "steps",
    ("trades", "robustness_weight"): "beta",
    ("gat", "robustness_weight"): "weight",
    ("gat", "robustness_rise"): "rise",
}
"""(defense, setting of a run) -> field of the defense, where the names differ."""


__all__ = [
    "DEFENSES",
    "MANY_STEPS",
    "Batch",
    "Choice",
    "Consistency",
    "Defense",
    "Fast",
    "Forward",
    "Gat",
    "GradAlign",
    "Mep",
    "NoDefense",
    "Perturbed",
    "PgdTraining",
    "Trades",
    "Trained",
    "build",
    "recall",
]
