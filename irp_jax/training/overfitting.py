"""The guard against catastrophic overfitting: what it measures, and what alarms it.

Training on attacks of one step may learn to fool that step: within part of an epoch accuracy under
it soars while accuracy under several steps goes to nothing (Wong, Rice & Kolter 2020, section 5.4;
Andriushchenko & Flammarion 2020). So accuracy under several steps is measured on training images at
the end of every compiled segment. When it has lost half of its best while accuracy under the attack
trained on has not fallen, that state and the last one above suspicion are attacked on more images
than a probe has; if it has lost half there too, `epochs.train` goes back to the other, and on with
a stronger defence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from irp_jax.attacks import LogitsFn, Threat, cross_entropy
from irp_jax.attacks.batch import starts, step

IMAGES = 64
"""Images of a segment's last batch that are attacked: 3 % of the work of 50 steps of N-FGSM."""

STEPS, LENGTH = 5, 0.5
"""Gradient steps of the probe, and the length of each in units of epsilon."""

ALARM, SUSPICION = 0.5, 0.75
"""Shares of the best PGD accuracy, below which it counts as lost and as doubtful."""

GAP = 0.12
"""Nor is it either if less than this below the best: four standard deviations of such a share."""

KEPT = 0.9
"""A network that lost so much under the attack it trains on is losing ground, not cheating."""

FADING = 0.5
"""What is left of the best by the time the radius trained against has grown to the full one: what
was reached at a smaller radius is less and less of a measure."""


class Health(NamedTuple):
    """What the guard remembers from segment to segment; accuracies in [0, 1].

    Attributes:
        last_pgd: of the segment before, since one probe alone may be chance; None at the beginning.
        last_trained: accuracy under the attack trained on, likewise.
        pgd, trained: means over the last two segments.
        best_pgd: the highest `pgd` so far.
        best_trained: `trained` at that time.
    """

    last_pgd: float | None = None
    last_trained: float = 0.0
    pgd: float = 0.0
    trained: float = 0.0
    best_pgd: float = 0.0
    best_trained: float = 0.0

    def after(self, pgd: float, trained: float, *, growth: float = 0.0) -> "Health":
        """What is remembered after a segment.

        Args:
            pgd, trained: accuracies in it.
            growth: how much of the warm-up of the radius it was, in [0, 1].
        """
        if self.last_pgd is None:
            return Health(last_pgd=pgd, last_trained=trained)
        mean = (self.last_pgd + pgd) / 2, (self.last_trained + trained) / 2
        fading = FADING**growth
        best = max((fading * self.best_pgd, fading * self.best_trained), mean)
        return Health(pgd, trained, *mean, *best)

    def _below(self, share: float) -> bool:
        lost = self.pgd < share * self.best_pgd and self.best_pgd - self.pgd > GAP
        return lost and self.trained > KEPT * self.best_trained

    @property
    def alarming(self) -> bool:
        """Whether the network has come to fool the attack that it is trained on."""
        return self._below(ALARM)

    @property
    def suspicious(self) -> bool:
        """Whether it may be about to: not a state to go back to."""
        return self._below(SUSPICION)

    def after_second_look(self, before: float, now: float) -> "Health":
        """What is remembered once an alarm has been looked into: alarming only if it was true.

        The best of many probes is a lucky one, so an unlucky pair of them may raise an alarm.

        Args:
            before: accuracy under PGD of the last state above suspicion.
            now: that of the present state, on the same images and from the same starts.
        """
        # Not `before` alone: at the start of an epoch in which much was learned it was low. Of the
        # best, which may be luck, as much as is above suspicion.
        reference = max(before, SUSPICION * self.best_pgd)
        if now < ALARM * reference:
            return self
        return self._replace(last_pgd=now, pgd=now, best_pgd=max(reference, now))


def images_of(batch: int, devices: int) -> int:
    """How many images of a batch are probed: about `IMAGES`, split evenly over the devices."""
    return min(max(IMAGES // devices, 1), batch // devices) * devices


def probe(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, threat: Threat, key: jax.Array
) -> jax.Array:
    """Accuracy under PGD, () float32: an image is lost if any point on the way fools the network.

    Args:
        logits_fn: the network in inference mode: images (N, H, W, C) -> logits (N, K).
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
