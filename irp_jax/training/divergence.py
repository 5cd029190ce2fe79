"""Detection of divergence for the guard, and the remedy.

If the learning rate is close to the largest that a network can train with, training can diverge
within an epoch. Deep networks are most at risk. The loss rises far above that of guessing, or the
network returns to guessing and stays there. Natural accuracy and accuracy under every attack fall
together, so the probes of `overfitting` see no difference. While the rate is high, a network hardly
recovers. Clipping the gradient norm prevents divergence (Pascanu, Mikolov & Bengio 2013, section
3.2).
"""

import math
from typing import NamedTuple

import numpy as np

CLIP = 1.0
"""Largest gradient norm after an alarm. On digits the norm of ResNet56 is 2 to 4 before it diverges
(results/clip_resnet56.json)."""

STUCK = 3
"""Number of epochs in a row at the loss of guessing after which the guard raises an alarm."""


class LossRecord(NamedTuple):
    """The guard's record of the loss over the epochs.

    Attributes:
        guessing: loss of a network that predicts all classes alike, ln(classes).
        prior: loss of a network that predicts the class frequencies and nothing else. A network
            that loses all it has learnt has this loss. It equals `guessing` if all classes are
            equally frequent.
        lowest: loss of the best epoch so far, at most `guessing`.
        last: loss of the last epoch. It may be infinite or NaN.
        stuck: number of epochs in a row whose loss is that of a network that has lost what it had
            learnt.
        falling: whether the loss of the last epoch is below that of the epoch before.
    """

    guessing: float
    prior: float
    lowest: float
    last: float
    stuck: int = 0
    falling: bool = False

    @classmethod
    def begin(cls, labels: np.ndarray, classes: int, smoothing: float = 0.0) -> "LossRecord":
        """Returns the record before the first epoch.

        Args:
            labels: (N,) integer, of the training images.
            classes: number of classes.
            smoothing: label smoothing in [0, 1). It makes the class frequencies more alike.
        """
        guessing = math.log(classes)
        shares = np.bincount(labels, minlength=classes) / len(labels)
        shares = (1 - smoothing) * shares + smoothing / classes
        shares = shares[shares > 0]
        return cls(guessing, float(-shares @ np.log(shares)), guessing, guessing)

    @property
    def restarted(self) -> "LossRecord":
        """The record without earlier losses, for training that minimises another loss next."""
        return LossRecord(self.guessing, self.prior, self.guessing, self.guessing)

    @property
    def after_compaction(self) -> "LossRecord":
        """The record after the network was compacted or rounded: without earlier losses.

        Both may raise the loss by any amount. If the network had already lost what it had
        learnt, the record does not change.
        """
        return self if self.stuck else self.restarted

    @property
    def for_larger_radius(self) -> "LossRecord":
        """The record for a growing training radius: the lowest loss is that of the last epoch.

        The loss grows with the radius. If the network had already lost what it had learnt, the
        record does not change.
        """
        return self if self.stuck else self._replace(lowest=min(self.last, self.guessing))

    def after(self, loss: float) -> "LossRecord":
        """Returns the record after an epoch with this loss."""
        learnt = self.prior - self.lowest
        forgotten = learnt > 0.1 * self.prior and not loss <= self.prior - 0.1 * learnt
        lowest = loss if loss < self.lowest else self.lowest  # NaN is never the lowest
        stuck = self.stuck + 1 if forgotten else 0
        return LossRecord(self.guessing, self.prior, lowest, loss, stuck, loss < self.last)

    def _above(self, share: float) -> bool:
        return not self.last <= self.lowest + share * self.guessing

    @property
    def alarming(self) -> bool:
        """Whether training has diverged.

        The loss exceeds the lowest by more than `guessing`, is NaN, or is stuck for `STUCK` epochs.
        """
        return self._above(1.0) or self.stuck == STUCK

    @property
    def suspicious(self) -> bool:
        """Whether divergence may have begun, so that the run must not roll back to this state."""
        return self._above(0.5) or self.stuck > 0


def stronger_clipping(clip: float) -> float | None:
    """Returns the gradient norm to clip to after an alarm; None if clipping is as strong already.

    Args:
        clip: largest gradient norm now; 0 means no clipping.
    """
    return CLIP if clip == 0 or clip > CLIP else None
