"""Training on attacks of one gradient step."""

import dataclasses

from irp_jax.attacks import FAST_ATTACKS, LogitsFn, fgsm
from irp_jax.training.defenses.defense import Batch, Defense, Perturbed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fast(Defense):
    """Cross-entropy on images one gradient step away.

    Attributes:
        name: of the attack, in `attacks.FAST_ATTACKS`, which names the papers: Goodfellow et al.
            2015 ("fgsm"), Wong, Rice & Kolter 2020 ("fgsm-rs"), de Jorge et al. 2022 ("n-fgsm").
    """

    @property
    def passes(self) -> float:
        """One for the attack, one to learn from it."""
        return 2.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """See `Defense`."""
        attack = FAST_ATTACKS[self.name]
        images, labels, threat, key, *_ = batch
        return Perturbed(fgsm(logits_fn, images, labels, threat, key=key, attack=attack))
