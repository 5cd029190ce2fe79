"""Training on attacks of one gradient step."""

import dataclasses
from typing import Any

import jax

from irp_jax.attacks import FAST_ATTACKS, LogitsFn, Threat, fgsm
from irp_jax.training.defenses.clean import Clean
from irp_jax.training.defenses.defense import Perturbed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fast(Clean):
    """Cross-entropy on images one gradient step away.

    Attributes:
        name: of the attack, in `attacks.FAST_ATTACKS`, which names the papers: Goodfellow et al.
            2015 ("fgsm"), Wong, Rice & Kolter 2020 ("fgsm-rs"), de Jorge et al. 2022 ("n-fgsm").
    """

    @property
    def passes(self) -> float:
        """One for the attack, one to learn from it."""
        return 2.0

    def perturb(
        self,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        threat: Threat,
        key: jax.Array,
        memory: Any,
    ) -> Perturbed:
        """See `Defense`."""
        attack = FAST_ATTACKS[self.name]
        return Perturbed(fgsm(logits_fn, images, labels, threat, key=key, attack=attack))
