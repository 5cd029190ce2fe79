"""The guard against catastrophic overfitting: what it measures, and what alarms it.

Training on attacks of one step may learn to fool that step: accuracy under it soars, within part of
an epoch or from the start of training, while accuracy under several steps is next to nothing (Wong,
Rice & Kolter 2020, section 5.4; Andriushchenko & Flammarion 2020). So accuracy under several steps
is measured on training images at the end of every compiled segment. When it is less than half of
accuracy under the attack trained on and not rising, more images than a probe has are attacked; if
it is so there too, the run goes back to the last sound state, and on with a stronger defense
(`guard.retreat`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn, Threat, cross_entropy
from irp_jax.attacks.ascent import starts, step

IMAGES = 64
"""A segment's last images are attacked: 3 % of the work of 50 steps of N-FGSM in batches of 128."""

STEPS, LENGTH = 5, 0.5
"""Gradient steps of the probe, and the length of each in units of epsilon."""

ALARM, SUSPICION = 0.5, 0.7
"""Shares of accuracy under the attack trained on: PGD accuracy below the first is cheating, unless
it is rising; below the second it is doubtful."""

GAP = 0.15
"""Nor is it either if less than this below: nearly four standard deviations of two probes' mean."""

PATIENCE = 3
"""Epochs after which what is doubtful, and no worse, is gone on from: a collapse takes less."""


class Health(NamedTuple):
    """What the guard remembers from segment to segment; accuracies in [0, 1].

    Attributes:
        chance: accuracy of guessing. A network that has learnt nothing yet is at chance under the
            attack it trains on and may be far below under PGD: that is no cheating.
        pgd, trained: means over the last two segments, since one probe alone may be unlucky.
        rising: whether `pgd` is higher than it was a segment before. In the first steps of training
            it rises from far below, and has caught up soon: that is no cheating either.
        last_pgd: of the last one alone; None at the beginning.
        last_trained: accuracy under the attack trained on, likewise.
    """

    chance: float = 0.0
    pgd: float = 0.0
    trained: float = 0.0
    rising: bool = True
    last_pgd: float | None = None
    last_trained: float = 0.0

    def after(self, pgd: float, trained: float) -> "Health":
        """What is remembered after a segment with these accuracies."""
        if self.last_pgd is None:
            return Health(self.chance, pgd, trained, True, pgd, trained)
        mean_pgd, mean_trained = (self.last_pgd + pgd) / 2, (self.last_trained + trained) / 2
        return Health(self.chance, mean_pgd, mean_trained, mean_pgd > self.pgd, pgd, trained)

    def after_second_look(self, pgd: float, trained: float) -> "Health":
        """What is remembered once an alarm has been looked into: alarming only if it was true.

        Args:
            pgd, trained: accuracies on more images than a probe has.
        """
        return Health(self.chance, pgd, trained, self.rising, pgd, trained)

    def _below(self, share: float) -> bool:
        parted = self.trained - max(self.pgd, self.chance) > GAP
        return parted and self.pgd < share * self.trained

    @property
    def alarming(self) -> bool:
        """Whether the network has come to fool the attack that it is trained on."""
        return not self.rising and self._below(ALARM)

    @property
    def suspicious(self) -> bool:
        """Whether it may be about to: not a state to go back to."""
        return self._below(SUSPICION)


def images_of(segment: int, devices: int) -> int:
    """How many of a segment's images are probed: about `IMAGES`, split evenly over the devices."""
    return min(max(IMAGES // devices, 1), segment // devices) * devices


def probe(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, threat: Threat, key: jax.Array
) -> jax.Array:
    """Accuracy under PGD, () float32: an image is lost if any point on the way fools the network.

    Args:
        logits_fn: the network: images (N, H, W, C) -> logits (N, K).
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) integer.
        threat: the ball.
        key: of the random start.
    """

    def look(current: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(current)
        return jnp.sum(jax.vmap(cross_entropy)(logits, labels)), logits.argmax(-1) == labels

    def ascend(_: jax.Array, so_far: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        current, standing = so_far
        gradient, right = jax.grad(look, has_aux=True)(current)
        return step(threat, current, images, gradient, LENGTH), standing & right

    begin = starts(threat, key, images), jnp.ones(labels.shape, bool)
    last, standing = jax.lax.fori_loop(0, STEPS, ascend, begin)
    return jnp.mean(standing & look(last)[1], dtype=jnp.float32)
