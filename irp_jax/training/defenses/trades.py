"""Training on natural images with a similar output in the whole ball (TRADES)."""

import dataclasses

import jax

from irp_jax.attacks import LogitsFn, clip_to_box
from irp_jax.attacks.ascent import ascend
from irp_jax.training.defenses.adversarial import both
from irp_jax.training.defenses.defense import Batch, Defense, Forward, Perturbed, Trained
from irp_jax.training.defenses.pgd import step_length
from irp_jax.training.losses import kl_divergence, mean_cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trades(Defense):
    """Minimises CE(natural) + beta KL(natural || adversarial) (Zhang et al. 2019, algorithm 1).

    The attack maximises the same divergence. It starts near the image, because at the image itself
    the divergence is minimal and has no gradient. The authors' code attacks in inference mode. Here
    the norms use the statistics of the batch, as everywhere in training.

    Attributes:
        steps: gradient steps of the attack.
        beta: weight of the divergence: the paper's 1 / lambda, 6 on CIFAR-10.
        start_deviation: standard deviation of the random start, in pixel units of [0, 1].
    """

    name: str = "trades"
    steps: int = 10
    beta: float = 6.0
    start_deviation: float = 1e-3

    @property
    def passes(self) -> float:
        """One pass for each attack step, two to learn from both images."""
        return self.steps + 2.0

    def perturb(self, logits_fn: LogitsFn, batch: Batch) -> Perturbed:
        """Attacks by PGD on the divergence."""
        images = batch.images
        natural = logits_fn(images)
        noise = jax.random.normal(batch.key, images.shape, images.dtype)

        def total(current: jax.Array) -> jax.Array:
            return images.shape[0] * kl_divergence(natural, logits_fn(current))

        start = clip_to_box(images + self.start_deviation * noise)
        far = step_length(self.steps)
        return Perturbed(
            ascend(jax.grad(total), batch.threat, start, images, steps=self.steps, length=far)
        )

    def loss(
        self, forward: Forward, batch: Batch, perturbed: Perturbed
    ) -> tuple[jax.Array, Trained]:
        """See the class. Running statistics are the mean of natural and adversarial ones."""
        natural, trained = both(forward, batch, perturbed)
        entropy = mean_cross_entropy(natural, batch.targets(natural))
        return entropy + self.beta * kl_divergence(natural, trained.logits), trained
