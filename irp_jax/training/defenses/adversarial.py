"""Training on adversarial images, and optionally on natural images as well."""

import dataclasses

import jax

from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.losses import mean_cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Defense):
    """Base of defenses with the loss (1 - w) CE(adversarial) + w CE(natural).

    Goodfellow et al. 2015, section 6, has w = 1/2. If a teacher's output is the target of both
    terms and w = 1/6, it is the loss of RSLAD (Zi et al. 2021, equation 5) up to a constant.

    Attributes:
        natural_weight: w, in [0, 1). At 0 there is no forward pass of the natural images.
    """

    natural_weight: float = 0.0

    @property
    def to_learn(self) -> float:
        """Passes for the descent step: one, or two with natural images."""
        return 2.0 if self.natural_weight else 1.0

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """See the class. Running statistics are the mean of natural and adversarial ones."""
        if not self.natural_weight:
            return super().loss(forward, batch, perturbed)
        natural, trained = both(forward, batch, perturbed)
        weight, targets = self.natural_weight, batch.targets(natural)
        loss = weight * mean_cross_entropy(natural, targets)
        return loss + (1 - weight) * mean_cross_entropy(trained.logits, targets), trained


def both(forward: Forward, batch: Batch, perturbed: Perturbed) -> tuple[jax.Array, Trained]:
    """Evaluates natural and adversarial images in training mode.

    Returns:
        Logits (N, K) of the natural images, and the result for the adversarial images. Its running
        statistics are the mean of both. Its counters are those after the second evaluation.
    """
    natural, natural_stats = forward(batch.images)
    logits, stats = forward(perturbed.adversarial)
    return natural, Trained(logits, jax.tree.map(_mean, natural_stats, stats))


def _mean(one: jax.Array, other: jax.Array) -> jax.Array:
    return 0.5 * (one + other) if jax.numpy.issubdtype(other.dtype, jax.numpy.floating) else other
