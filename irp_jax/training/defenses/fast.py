"""Training on attacks of one gradient step."""

import dataclasses

from irp_jax.attacks import FAST_ATTACKS, LogitsFn, fgsm
from irp_jax.training.defenses.adversarial import Adversarial
from irp_jax.training.defenses.defense import Batch, Perturbed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fast(Adversarial):
    """Training on images that are one gradient step away.

    Attributes:
        name: of the attack, in `attacks.FAST_ATTACKS`: Goodfellow et al. 2015 ("fgsm"), Wong, Rice
            & Kolter 2020 ("fgsm-rs"), de Jorge et al. 2022 ("n-fgsm").
        noise: radius of the ball of random starts, in units of epsilon. None takes the paper's
            value: 1 for "fgsm-rs", 2 for "n-fgsm".
    """

    noise: float | None = None

    @property
    def passes(self) -> float:
        """One pass for the attack, the others for the descent step."""
        return 1.0 + self.to_learn

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks by one step."""
        attack = FAST_ATTACKS[self.name]
        if self.noise is not None:
            attack = dataclasses.replace(attack, start_scale=self.noise)
        images, labels, threat, key, *_ = batch
        return Perturbed(fgsm(logits_fn, images, labels, threat, key=key, attack=attack))
