"""FGSM training with an attack's start and its end held to the same answer."""

import dataclasses
from typing import Any

import jax

from irp_jax.attacks import FAST_ATTACKS, LogitsFn, Threat
from irp_jax.training.defenses.ascent import input_gradient, starts, step
from irp_jax.training.defenses.clean import Clean
from irp_jax.training.defenses.defense import Forward, Perturbed, Trained
from irp_jax.training.losses import cross_entropy, squared_distance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Clean):
    """CE(FGSM-RS) + weight |f(end of the attack) - f(start of the attack)|^2.

    The regulariser of Jia et al. 2022 ("Prior-guided adversarial initialization for fast
    adversarial training"), on logits, with the random start of FGSM-RS. The weight and the mean
    over classes are those of the authors' code (github.com/jiaxiaojunQAQ/FGSM-PGI); both images
    are learned from.

    Attributes:
        weight: the paper's lambda.
    """

    name: str = "fgsm-consistency"
    weight: float = 10.0

    @property
    def passes(self) -> float:
        """One for the attack, two to learn from its start and its end."""
        return 3.0

    def perturb(
        self,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        threat: Threat,
        key: jax.Array,
        memory: Any,
    ) -> Perturbed:
        """FGSM-RS; the reference is its start."""
        start = starts(threat, key, images)
        gradient = input_gradient(logits_fn, start, labels)
        length = FAST_ATTACKS["fgsm-rs"].step_scale
        return Perturbed(step(threat, start, images, gradient, length), start)

    def loss(
        self,
        forward: Forward,
        images: jax.Array,
        labels: jax.Array,
        perturbed: Perturbed,
        *,
        smoothing: float,
    ) -> tuple[jax.Array, Trained]:
        """See the class."""
        start, _ = forward(perturbed.reference)
        logits, batch_stats = forward(perturbed.adversarial)
        apart = squared_distance(logits, start)
        loss = cross_entropy(logits, labels, smoothing) + self.weight * apart
        return loss, Trained(logits, batch_stats)
