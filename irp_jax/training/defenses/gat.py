"""Training on natural images with similar outputs for natural and adversarial images."""

import dataclasses

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn, clip_to_box
from irp_jax.attacks.ascent import step
from irp_jax.training.defenses.adversarial import both
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.losses import mean_cross_entropy

LATE = 0.85
"""Fraction of training after which the weight rises: epoch 85 of 100 in the authors' code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gat(Defense):
    """Minimises CE(natural) + weight |p(natural) - p(adversarial)|^2, where p are probabilities.

    This is guided adversarial training (Sriramanan et al. 2020, section 4 and algorithm 1), with
    the settings of the authors' code for CIFAR-10 (github.com/val-iisc/GAMA-GAT). The attack starts
    at a random corner of the ball of half the radius. It takes one step of length epsilon that
    increases CE and, in every other step of training, also the same weighted distance. The distance
    is summed over classes and averaged over images. A larger weight gives more robust and less
    natural accuracy. The authors attack the network in inference mode; here it is in training mode,
    as for all defenses. For MNIST the authors start at the whole radius, use a weight of 15 and the
    distance in each step.

    Attributes:
        weight: of the distance: the paper's lambda.
        rise: factor of the weight after the fraction `LATE` of training.
    """

    name: str = "gat"
    weight: float = 10.0
    rise: float = 4.0

    @property
    def passes(self) -> float:
        """One pass for the attack, two to learn from both images.

        The attack and the loss share the natural forward pass, which the compiler computes once.
        """
        return 3.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks by one step, as the class says."""
        images, labels, threat = batch.images, batch.labels, batch.threat
        natural = logits_fn(images)
        guided = self.weight_at(batch) * jnp.asarray(batch.step % 2, jnp.float32)

        def total(current: jax.Array) -> jax.Array:
            logits = logits_fn(current)
            loss = mean_cross_entropy(logits, labels) + guided * probability_distance(
                natural, logits
            )
            return images.shape[0] * loss

        corners = jnp.where(jax.random.bernoulli(batch.key, shape=images.shape), 0.5, -0.5)
        start = clip_to_box(images + threat.epsilon * corners)
        gradient = jax.grad(total)(start)
        return Perturbed(jax.lax.stop_gradient(step(threat, start, images, gradient, 1.0)))

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """See the class. Running statistics are the mean of natural and adversarial ones."""
        natural, trained = both(forward, batch, perturbed)
        distance = probability_distance(natural, trained.logits)
        loss = (
            mean_cross_entropy(natural, batch.targets(natural)) + self.weight_at(batch) * distance
        )
        return loss, trained

    def weight_at(self, batch: Batch) -> jax.Array:
        """Returns the weight of the distance at this step of training."""
        return self.weight * jnp.where(batch.done >= LATE, self.rise, 1.0)


def probability_distance(natural: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the squared distance of the probabilities of two (N, K) logits, mean over images."""
    difference = jax.nn.softmax(natural) - jax.nn.softmax(other)
    return jnp.mean(jnp.sum(jnp.square(difference), axis=-1))
