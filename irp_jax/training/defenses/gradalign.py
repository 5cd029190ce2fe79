"""FGSM training of a network whose input gradient is held steady over the ball."""

import dataclasses

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn
from irp_jax.attacks.ascent import input_gradient, starts, step
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.losses import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradAlign(Defense):
    """CE(FGSM) + weight (1 - cos of the gradients at x and at a random neighbour).

    Andriushchenko & Flammarion 2020, section 5. A step of length epsilon finds the worst image of
    a loss that is linear in the ball, which is what the second term makes it. As in the authors'
    code (github.com/tml-epfl/understanding-fast-adv-training) the gradient at x, which the attack
    has computed already, is held fixed, and the term is differentiated at the neighbour alone.

    Attributes:
        weight: of the second term: the paper's lambda, 0.2 for 8/255 on CIFAR-10.
    """

    name: str = "gradalign"
    weight: float = 0.2

    @property
    def passes(self) -> float:
        """One for the attack, one to learn from it, two for a gradient that is differentiated."""
        return 4.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """FGSM without a random start; the reference is its gradient and a random neighbour."""
        images, labels, threat, key, *_ = batch
        gradient = input_gradient(logits_fn, images, labels)
        adversarial = step(threat, images, images, gradient, 1.0)
        return Perturbed(adversarial, (gradient, starts(threat, key, images)))

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """See the class."""
        gradient, neighbours = perturbed.reference
        beside = input_gradient(lambda x: forward(x)[0], neighbours, batch.labels)
        logits, batch_stats = forward(perturbed.adversarial)
        entropy = cross_entropy(logits, batch.targets(logits))
        loss = entropy + self.weight * misalignment(gradient, beside)
        return loss, Trained(logits, batch_stats)


def misalignment(first: jax.Array, second: jax.Array) -> jax.Array:
    """Mean of one minus the cosine between two gradients, () float32 in [0, 2].

    Args:
        first, second: (N, H, W, C). An image either of whose gradients is zero does not count.
    """
    (one, any_one), (two, any_two) = _unit(first), _unit(second)
    counts = any_one & any_two
    apart = 1.0 - jnp.sum(one * two, axis=(1, 2, 3))
    return jnp.sum(jnp.where(counts, apart, 0.0)) / jnp.maximum(
        jnp.sum(counts, dtype=apart.dtype), 1.0
    )


def _unit(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each image's gradient at length one, and (N,) bool, whether it had a length."""
    # A confident network's gradient may be so small that its square is zero in float32.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True))
    present = largest > 0
    scaled = gradient / jnp.where(present, largest, 1.0)
    squared = jnp.sum(jnp.square(scaled), axis=(1, 2, 3), keepdims=True)
    return scaled * jax.lax.rsqrt(jnp.where(present, squared, 1.0)), present[:, 0, 0, 0]
