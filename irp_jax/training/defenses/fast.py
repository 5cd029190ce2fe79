"""Training on attacks of one gradient step."""

import dataclasses

from irp_jax.attacks import FAST_ATTACKS, LogitsFn, fgsm
from irp_jax.training.defenses.adversarial import Adversarial
from irp_jax.training.defenses.defense import Batch, Perturbed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fast(Adversarial):
    """Cross-entropy on images one gradient step away.

    Attributes:
        name: of the attack, in `attacks.FAST_ATTACKS`, which names the papers: Goodfellow et al.
            2015 ("fgsm"), Wong, Rice & Kolter 2020 ("fgsm-rs"), de Jorge et al. 2022 ("n-fgsm").
        noise: radius of the ball that the start is drawn from, in units of epsilon; None for the
            paper's, 1 of "fgsm-rs" and 2 of "n-fgsm".
    """

    noise: float | None = None

    @property
    def passes(self) -> float:
        """One for the attack, the others to learn."""
        return 1.0 + self.to_learn

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """See `Defense`."""
        attack = FAST_ATTACKS[self.name]
        if self.noise is not None:
            attack = dataclasses.replace(attack, start_scale=self.noise)
        images, labels, threat, key, *_ = batch
        return Perturbed(fgsm(logits_fn, images, labels, threat, key=key, attack=attack))
