"""Detection of catastrophic overfitting for the guard.

A network that is trained on attacks of one gradient step can overfit to that step. Accuracy under
the step then rises steeply, within part of an epoch or from the start of training. Accuracy under
attacks of several steps falls to almost zero (Wong, Rice & Kolter 2020, section 5.4; Andriushchenko
& Flammarion 2020). So the guard measures accuracy under both attacks on training images, at the end
of every compiled segment. There is an alarm if PGD accuracy is less than half of accuracy under the
training attack and is not rising. The guard then checks the alarm on more images. If they confirm
it, the run rolls back to the last sound state and continues with a stronger defense
(`guard.roll_back`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn, Threat, cross_entropy
from irp_jax.attacks.ascent import starts, step

IMAGES = 64
"""Number of images of a probe, the last of a segment. The attacks on them are 3 % of the work of 50
steps of N-FGSM with batches of 128."""

STEPS, LENGTH = 5, 0.5
"""Gradient steps of the probe's PGD, and the length of each in units of epsilon."""

ALARM, SUSPICION = 0.5, 0.7
"""Ratios of PGD accuracy to accuracy under the training attack. A ratio below `ALARM` that is not
rising is an alarm. A state with a ratio below `SUSPICION` is suspicious."""

GAP = 0.15
"""Smallest difference of the two accuracies for either. It is nearly four standard deviations of
the mean of two probes."""

PATIENCE = 3
"""Number of epochs without a sound state after which a suspicious state counts as sound. A collapse
takes fewer."""


class AccuracyRecord(NamedTuple):
    """The guard's record of accuracies over the segments; all are in [0, 1].

    Attributes:
        chance: accuracy of guessing. A network that has learnt nothing is at chance under the
            training attack and may be far below chance under PGD. That is no overfitting.
        pgd, trained: accuracies under PGD and under the training attack, means over the last two
            segments, because one probe alone is noisy.
        rising: whether `pgd` is higher than one segment before. In the first steps of training PGD
            accuracy is far below and catches up soon. That is no overfitting.
        last_pgd: PGD accuracy of the last segment alone; None at the beginning.
        last_trained: accuracy of the last segment alone under the training attack.
    """

    chance: float = 0.0
    pgd: float = 0.0
    trained: float = 0.0
    rising: bool = True
    last_pgd: float | None = None
    last_trained: float = 0.0

    def after(self, pgd: float, trained: float) -> "AccuracyRecord":
        """Returns the record after a segment with these accuracies."""
        if self.last_pgd is None:
            return AccuracyRecord(self.chance, pgd, trained, True, pgd, trained)
        mean_pgd, mean_trained = (self.last_pgd + pgd) / 2, (self.last_trained + trained) / 2
        return AccuracyRecord(
            self.chance, mean_pgd, mean_trained, mean_pgd > self.pgd, pgd, trained
        )

    def after_check(self, pgd: float, trained: float) -> "AccuracyRecord":
        """Returns the record after the check of an alarm, alarming only if that was true.

        Args:
            pgd, trained: accuracies on more images than a probe uses.
        """
        return AccuracyRecord(self.chance, pgd, trained, self.rising, pgd, trained)

    def _below(self, share: float) -> bool:
        parted = self.trained - max(self.pgd, self.chance) > GAP
        return parted and self.pgd < share * self.trained

    @property
    def alarming(self) -> bool:
        """Whether the network has overfitted to its training attack."""
        return not self.rising and self._below(ALARM)

    @property
    def suspicious(self) -> bool:
        """Whether it may be about to overfit, so that the run must not roll back to this state."""
        return self._below(SUSPICION)


def probe_size(segment: int, devices: int) -> int:
    """Returns how many images of a segment are probed: about `IMAGES`, the same on each device."""
    return min(max(IMAGES // devices, 1), segment // devices) * devices


def probe(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, threat: Threat, key: jax.Array
) -> jax.Array:
    """Returns accuracy under PGD, () float32.

    An image counts as broken if any iterate is misclassified.

    Args:
        logits_fn: the network: images (N, H, W, C) -> logits (N, K).
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) integer.
        threat: the ball of allowed perturbations.
        key: of the random start.
    """

    def loss_and_correct(current: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(current)
        return jnp.sum(jax.vmap(cross_entropy)(logits, labels)), logits.argmax(-1) == labels

    def ascend(_: jax.Array, so_far: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        current, robust = so_far
        gradient, right = jax.grad(loss_and_correct, has_aux=True)(current)
        return step(threat, current, images, gradient, LENGTH), robust & right

    begin = starts(threat, key, images), jnp.ones(labels.shape, bool)
    last, robust = jax.lax.fori_loop(0, STEPS, ascend, begin)
    return jnp.mean(robust & loss_and_correct(last)[1], dtype=jnp.float32)
