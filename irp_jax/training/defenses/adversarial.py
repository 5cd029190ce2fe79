"""Training on perturbed images, and in part on the images as they are."""

import dataclasses

import jax

from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.losses import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Defense):
    """(1 - w) CE(perturbed) + w CE(natural) (Goodfellow et al. 2015, section 6, has w = 1/2).

    With a teacher's answers as the targets of both terms and w = 1/6 it is the loss of RSLAD (Zi et
    al. 2021, equation 5) up to a constant.

    Attributes:
        natural_weight: w, in [0, 1). At 0 the natural images are not looked at.
    """

    natural_weight: float = 0.0

    @property
    def to_learn(self) -> float:
        """Passes to learn from what was found."""
        return 2.0 if self.natural_weight else 1.0

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """See the class; the running statistics follow natural and perturbed images alike."""
        if not self.natural_weight:
            return super().loss(forward, batch, perturbed)
        natural, trained = both(forward, batch, perturbed)
        weight, targets = self.natural_weight, batch.targets(natural)
        loss = weight * cross_entropy(natural, targets)
        return loss + (1 - weight) * cross_entropy(trained.logits, targets), trained


def both(forward: Forward, batch: Batch, perturbed: Perturbed) -> tuple[jax.Array, Trained]:
    """Logits (N, K) of the natural images, and what the network made of the perturbed ones.

    The running statistics are the mean of both; what is counted is as after the second.
    """
    natural, natural_stats = forward(batch.images)
    logits, stats = forward(perturbed.adversarial)
    return natural, Trained(logits, jax.tree.map(_mean, natural_stats, stats))


def _mean(one: jax.Array, other: jax.Array) -> jax.Array:
    return 0.5 * (one + other) if jax.numpy.issubdtype(other.dtype, jax.numpy.floating) else other
