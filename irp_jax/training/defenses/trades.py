"""Training on two terms: accuracy on the images, and the same answer all over the ball."""

import dataclasses
from typing import Any

import jax

from irp_jax.attacks import LogitsFn, Threat, clip_to_box
from irp_jax.training.defenses.ascent import ascend
from irp_jax.training.defenses.defense import Forward, Perturbed, Trained
from irp_jax.training.defenses.pgd import Pgd, length
from irp_jax.training.losses import cross_entropy, divergence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trades(Pgd):
    """CE(clean) + beta KL(clean || adversarial) (Zhang et al. 2019, algorithm 1).

    The attack climbs the same divergence. It starts beside the image, since at the image itself
    the divergence has its minimum and no gradient. The authors' code attacks in inference mode;
    here, as everywhere in training, the norms take the statistics of the batch.

    Attributes:
        beta: weight of the divergence: the paper's 1 / lambda, 6 on CIFAR-10.
        start_deviation: standard deviation of the start, in pixel units of [0, 1].
    """

    name: str = "trades"
    beta: float = 6.0
    start_deviation: float = 1e-3

    @property
    def passes(self) -> float:
        """One a step, two to learn from both images."""
        return self.steps + 2.0

    def perturb(
        self,
        logits_fn: LogitsFn,
        images: jax.Array,
        labels: jax.Array,
        threat: Threat,
        key: jax.Array,
        memory: Any,
    ) -> Perturbed:
        """See `Defense`."""
        clean = logits_fn(images)
        noise = jax.random.normal(key, images.shape, images.dtype)

        def total(current: jax.Array) -> jax.Array:
            return images.shape[0] * divergence(clean, logits_fn(current))

        start = clip_to_box(images + self.start_deviation * noise)
        found = ascend(
            jax.grad(total), threat, start, images, steps=self.steps, length=length(self.steps)
        )
        return Perturbed(found)

    def loss(
        self,
        forward: Forward,
        images: jax.Array,
        labels: jax.Array,
        perturbed: Perturbed,
        *,
        smoothing: float,
    ) -> tuple[jax.Array, Trained]:
        """Both terms; the running statistics follow clean and adversarial images alike."""
        clean, clean_stats = forward(images)
        adversarial, adversarial_stats = forward(perturbed.adversarial)
        loss = cross_entropy(clean, labels, smoothing) + self.beta * divergence(clean, adversarial)
        both = jax.tree.map(lambda a, b: 0.5 * (a + b), clean_stats, adversarial_stats)
        return loss, Trained(adversarial, both)
