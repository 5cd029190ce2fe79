"""The guard against training that diverges: what tells it, and what training goes on with.

A learning rate near the edge of what a network bears may throw its weights off within an epoch,
deep networks' above all: loss soars above that of guessing, or the network falls back to guessing
and stays there. Accuracy falls on images and under every attack alike, so that the probes of
`overfitting` have nothing to compare. What is lost is hardly made up for while the rate is high.
Cutting long gradients short prevents it (Pascanu, Mikolov & Bengio 2013, section 3.2).
"""

import math
from typing import NamedTuple

import numpy as np

CLIP = 1.0
"""Longest gradient after an alarm; ResNet56 on digits shows 2 to 4 on its way to where it
diverges (results/clip_resnet56.json)."""

STUCK = 3
"""Epochs running that a network must be back at guessing to be thought unable to leave it."""


class Descent(NamedTuple):
    """What the guard remembers of the loss, from epoch to epoch.

    Attributes:
        guessing: loss of a network that guesses, ln(classes).
        prior: loss of a network that knows how frequent each class is and nothing else, which is
            what one that forgets everything falls back to: `guessing` where all are alike.
        lowest: of the best epoch so far, at most `guessing`.
        last: of the last epoch; may be infinite or no number.
        stuck: epochs running that ended with all that had been learnt forgotten.
        falling: whether the last epoch's loss is below that of the one before.
    """

    guessing: float
    prior: float
    lowest: float
    last: float
    stuck: int = 0
    falling: bool = False

    @classmethod
    def begin(cls, labels: np.ndarray, classes: int, smoothing: float = 0.0) -> "Descent":
        """Before the first epoch.

        Args:
            labels: (N,) integer, of the training images.
            classes: how many there are.
            smoothing: of labels; it makes the classes more alike.
        """
        guessing = math.log(classes)
        shares = np.bincount(labels, minlength=classes) / len(labels)
        shares = (1 - smoothing) * shares + smoothing / classes
        shares = shares[shares > 0]
        return cls(guessing, float(-shares @ np.log(shares)), guessing, guessing)

    @property
    def afresh(self) -> "Descent":
        """With nothing to compare with: another loss is minimised from here on."""
        return Descent(self.guessing, self.prior, self.guessing, self.guessing)

    @property
    def of_cut(self) -> "Descent":
        """With nothing to compare with either: the network has just been cut, at any cost in loss.

        But who has forgotten everything before is still held against what there was to forget.
        """
        return self if self.stuck else self.afresh

    @property
    def of_last(self) -> "Descent":
        """With the last epoch alone to compare with: the next one is attacked harder than others.

        But who has forgotten everything meanwhile is still held against what there was to forget.
        """
        return self if self.stuck else self._replace(lowest=min(self.last, self.guessing))

    def after(self, loss: float) -> "Descent":
        """What is remembered after an epoch of this loss."""
        learnt = self.prior - self.lowest
        forgotten = learnt > 0.1 * self.prior and not loss <= self.prior - 0.1 * learnt
        lowest = loss if loss < self.lowest else self.lowest  # a loss that is no number is no less
        stuck = self.stuck + 1 if forgotten else 0
        return Descent(self.guessing, self.prior, lowest, loss, stuck, loss < self.last)

    def _above(self, share: float) -> bool:
        return not self.last <= self.lowest + share * self.guessing

    @property
    def alarming(self) -> bool:
        """Whether loss has risen by more than that of guessing, or stays at it."""
        return self._above(1.0) or self.stuck == STUCK

    @property
    def suspicious(self) -> bool:
        """Whether it may have begun: not a state to go back to."""
        return self._above(0.5) or self.stuck > 0


def steadier(clip: float) -> float | None:
    """The longest gradient to go on with; None if gradients are cut as short already.

    Args:
        clip: in force; 0 is none.
    """
    return CLIP if clip == 0 or clip > CLIP else None
