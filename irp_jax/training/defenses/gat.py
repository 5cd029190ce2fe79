"""Training on natural images whose answers are held to those of perturbed ones."""

import dataclasses

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn, clip_to_box
from irp_jax.attacks.ascent import step
from irp_jax.training.defenses.adversarial import both
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.losses import cross_entropy

LATE = 0.85
"""The share of training after which the weight rises: epoch 85 of 100 in the authors' code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gat(Defense):
    """CE(natural) + weight |p(natural) - p(perturbed)|^2, p being probabilities.

    Guided adversarial training (Sriramanan et al. 2020, section 4 and algorithm 1), with the
    settings of the authors' code for CIFAR-10 (github.com/val-iisc/GAMA-GAT). The attack starts at
    a corner of the ball of half the radius, drawn at random, and is one step of length epsilon up
    CE plus, in every other step of training, the same weighted distance; the distance is summed
    over classes and averaged over images. The weight turns natural accuracy into robust accuracy.
    Their attack runs the network in inference mode, ours, as everywhere here, in training mode.
    For MNIST they start at the whole radius with a weight of 15 and have the distance in each step.

    Attributes:
        weight: of the distance: the paper's lambda.
        rise: what the weight is multiplied by once `LATE` of training is over.
    """

    name: str = "gat"
    weight: float = 10.0
    rise: float = 4.0

    @property
    def passes(self) -> float:
        """One for the attack, two to learn from both images. The attack's natural answer is that of
        the loss, and the compiler computes it once.
        """
        return 3.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """See the class."""
        images, labels, threat = batch.images, batch.labels, batch.threat
        natural = logits_fn(images)
        guided = self.weight_at(batch) * jnp.asarray(batch.step % 2, jnp.float32)

        def total(current: jax.Array) -> jax.Array:
            logits = logits_fn(current)
            loss = cross_entropy(logits, labels) + guided * apart(natural, logits)
            return images.shape[0] * loss

        corners = jnp.where(jax.random.bernoulli(batch.key, shape=images.shape), 0.5, -0.5)
        start = clip_to_box(images + threat.epsilon * corners)
        gradient = jax.grad(total)(start)
        return Perturbed(jax.lax.stop_gradient(step(threat, start, images, gradient, 1.0)))

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """See the class; the running statistics follow natural and perturbed images alike."""
        natural, trained = both(forward, batch, perturbed)
        distance = apart(natural, trained.logits)
        loss = cross_entropy(natural, batch.targets(natural)) + self.weight_at(batch) * distance
        return loss, trained

    def weight_at(self, batch: Batch) -> jax.Array:
        """The weight at a step of training."""
        return self.weight * jnp.where(batch.done >= LATE, self.rise, 1.0)


def apart(natural: jax.Array, other: jax.Array) -> jax.Array:
    """Squared distance of the probabilities of two (N, K) arrays of logits, mean over images."""
    difference = jax.nn.softmax(natural) - jax.nn.softmax(other)
    return jnp.mean(jnp.sum(jnp.square(difference), axis=-1))
