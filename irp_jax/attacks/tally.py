"""What has come of one attack, image by image, while it is under way."""

import dataclasses
from collections import Counter, deque

import numpy as np

from irp_jax.attacks.attack import Attack
from irp_jax.attacks.runs import Outcome
from irp_jax.attacks.standings import Standings


class Tally:
    """The runs of one attack on every image: done, waiting, and what they found.

    The host's own, changed in place.

    Attributes:
        waiting: images whose next run has no place yet, in order.
        standing: (N,) bool, images that nothing has made fall.
        survived: (N,) int32, runs of this attack that each image has survived.
    """

    def __init__(self, attack: Attack, index: int, at: Standings, classes: int) -> None:
        """Takes up an attack where it was left.

        Args:
            attack: under way.
            index: its place in the list.
            at: where the campaign stands; its images are written over.
            classes: of the network, K.
        """
        self._attack, self._index, self._at = attack, index, at
        self._runs_each = attack.runs(classes)
        self.standing, self.survived = at.standing.copy(), at.runs.copy()
        self._felled_by, self._images = at.felled_by.copy(), at.images
        to_run = at.standing & (at.runs < self._runs_each)
        self.waiting = deque(int(row) for row in np.flatnonzero(to_run))
        self._unverified = at.unverified[index] if len(at.unverified) > index else 0
        # A network known to be random is asked once more, as published, and may then answer
        # otherwise: that casts no doubt on it.
        self._doubting = getattr(attack, "eot", 1) == 1
        self._doubts: Counter[int] = Counter()  # of runs under way, by image

    def is_over(self, row: int, found: Outcome) -> bool:
        """Books what the run of one image came to, unless it should go on.

        Args:
            row: the image.
            found: of its run, no leading axis.

        Returns:
            False where a find does not hold up and there are steps left to look for another.
        """
        doubted = self._doubting and bool(found.claimed and not found.confirmed)
        self._doubts[row] += doubted
        if doubted and found.steps < self._attack.steps:
            return False
        if found.confirmed:
            self.standing[row], self._felled_by[row] = False, self._index
            self._images[row] = found.image
        else:
            self.survived[row] += 1
            if self.survived[row] < self._runs_each:
                self.waiting.appendleft(row)
        self._unverified += self._doubts.pop(row)
        return True

    @property
    def steps_left(self) -> int:
        """Of all runs to come, as far as is known; those under way count whole."""
        return int(self._runs_left.sum()) * self._attack.steps

    @property
    def longest_left(self) -> int:
        """Steps of the runs that the image with most of them has to come."""
        return int(self._runs_left.max(initial=0)) * self._attack.steps

    @property
    def _runs_left(self) -> np.ndarray:
        return self._runs_each - self.survived[self.standing]

    def standings(self) -> Standings:
        """Where the campaign stands now."""
        return dataclasses.replace(
            self._at, standing=self.standing, runs=self.survived, felled_by=self._felled_by,
            images=self._images, unverified=(*self._at.unverified[: self._index], self._unverified),
        )  # fmt: skip
