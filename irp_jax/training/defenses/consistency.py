"""FGSM training with similar outputs at the start and at the end of the attack."""

import dataclasses

import jax

from irp_jax.attacks import FAST_ATTACKS, LogitsFn
from irp_jax.attacks.ascent import input_gradient, starts, step
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.losses import mean_cross_entropy, squared_distance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Defense):
    """Minimises CE(FGSM-RS) + weight |f(end of the attack) - f(start of the attack)|^2.

    This is the regulariser of Jia et al. 2022 ("Prior-guided adversarial initialization for fast
    adversarial training") on logits, with the random start of FGSM-RS. The weight and the mean over
    classes are those of the authors' code (github.com/jiaxiaojunQAQ/FGSM-PGI). Gradients flow
    through the outputs of both images.

    Attributes:
        weight: the paper's lambda.
    """

    name: str = "fgsm-consistency"
    weight: float = 10.0

    @property
    def passes(self) -> float:
        """One pass for the attack, two to learn from its start and its end."""
        return 3.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks by FGSM-RS. The reference is the start of the attack."""
        start = starts(batch.threat, batch.key, batch.images)
        gradient = input_gradient(logits_fn, start, batch.labels)
        length = FAST_ATTACKS["fgsm-rs"].step_scale
        return Perturbed(step(batch.threat, start, batch.images, gradient, length), start)

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """Returns the loss of the class."""
        return consistent(forward, batch, perturbed, self.weight)


def consistent(
    forward: Forward, batch: Batch, perturbed: Perturbed, weight: float
) -> tuple[jax.Array, Trained]:
    """Returns the loss of `Consistency`, and the result for the adversarial images.

    Args:
        forward, batch: as for `Defense.loss`.
        perturbed: its reference is the start of the attack.
        weight: of the second term.
    """
    start, _ = forward(perturbed.reference)
    logits, batch_stats = forward(perturbed.adversarial)
    apart = squared_distance(logits, start)
    loss = mean_cross_entropy(logits, batch.targets(logits)) + weight * apart
    return loss, Trained(logits, batch_stats)
