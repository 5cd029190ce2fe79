"""FGSM training with input gradients that are similar throughout the ball."""

import dataclasses

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn
from irp_jax.attacks.ascent import input_gradient, starts, step
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.losses import mean_cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradAlign(Defense):
    """Minimises CE(FGSM) + weight (1 - cosine of the gradients at x and at a random neighbour).

    From Andriushchenko & Flammarion 2020, section 5. If the loss is linear in the ball, a step of
    length epsilon finds its maximum. The second term makes the loss more linear. As in the authors'
    code (github.com/tml-epfl/understanding-fast-adv-training), the gradient at x is that of the
    attack and is held fixed. The term is differentiated only through the gradient at the neighbour.

    Attributes:
        weight: of the second term: the paper's lambda, 0.2 for 8/255 on CIFAR-10.
    """

    name: str = "gradalign"
    weight: float = 0.2

    @property
    def passes(self) -> float:
        """One pass for the attack, one to learn from it, two to differentiate a gradient."""
        return 4.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks by FGSM without a random start. The reference is its gradient and neighbours."""
        images, labels, threat, key, *_ = batch
        gradient = input_gradient(logits_fn, images, labels)
        adversarial = step(threat, images, images, gradient, 1.0)
        return Perturbed(adversarial, (gradient, starts(threat, key, images)))

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """Returns the loss of the class."""
        gradient, neighbours = perturbed.reference
        beside = input_gradient(lambda x: forward(x)[0], neighbours, batch.labels)
        logits, batch_stats = forward(perturbed.adversarial)
        entropy = mean_cross_entropy(logits, batch.targets(logits))
        loss = entropy + self.weight * misalignment(gradient, beside)
        return loss, Trained(logits, batch_stats)


def misalignment(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the mean of 1 - cosine between two gradients, () float32 in [0, 2].

    Args:
        first, second: (N, H, W, C). Images with a zero gradient in either are left out of the mean.
    """
    (one, any_one), (two, any_two) = _unit(first), _unit(second)
    counts = any_one & any_two
    apart = 1.0 - jnp.sum(one * two, axis=(1, 2, 3))
    return jnp.sum(jnp.where(counts, apart, 0.0)) / jnp.maximum(
        jnp.sum(counts, dtype=apart.dtype), 1.0
    )


def _unit(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each gradient scaled to length one, and (N,) bool: whether it is not zero."""
    # A confident network's gradient can be so small that its square is zero in float32.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True))
    present = largest > 0
    scaled = gradient / jnp.where(present, largest, 1.0)
    squared = jnp.sum(jnp.square(scaled), axis=(1, 2, 3), keepdims=True)
    return scaled * jax.lax.rsqrt(jnp.where(present, squared, 1.0)), present[:, 0, 0, 0]
