"""One attack after another on the images still standing, in full batches of one shape.

The work of a round is a queue of runs (image, restart). An image that has fallen leaves the queue
and costs nothing more; every batch is full, so nothing is compiled twice. This is the host's part
and knows no attack: a round is any function from a batch of runs to which of them succeeded.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

Progress = Callable[[int, int, int], None]
"""Told (work done, work in all as far as is known, images standing) after every batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One attack of a cascade.

    Attributes:
        judge: (image indices (B,) int32, restarts (B,) int32) -> (B,) bool on the device: which
            runs made their image fall. Must send the work off and return without waiting for it.
        restarts: runs that an image must survive.
        cost: work of one run, in the unit that progress is told in.
    """

    judge: Callable[[np.ndarray, np.ndarray], jax.Array]
    restarts: int
    cost: int


def cascade(
    rounds: Sequence[Round], images: int, batch_size: int, progress: Progress | None = None
) -> list[np.ndarray]:
    """Runs each round over the images that stand after the ones before.

    Args:
        rounds: the attacks, usually the cheapest first.
        images: how many there are; all stand at first.
        batch_size: runs given to `judge` at once, always exactly that many.
        progress: called after every batch.

    Returns:
        For each round, which images stand after it: (images,) bool. It is the same for every batch
        size if the outcome of a run depends on its image and restart alone.
    """
    standing = np.ones(images, bool)
    after = []
    done = 0
    for number, this in enumerate(rounds):
        later = sum(other.restarts * other.cost for other in rounds[number + 1 :])
        left = np.full(images, this.restarts)
        for runs, fell in _in_batches(this, standing, batch_size):
            standing[runs[fell, 0]] = False
            np.subtract.at(left, runs[:, 0], 1)
            done += this.cost * len(runs)
            if progress is not None:
                still = int(standing.sum())
                ahead = this.cost * int(left[standing].sum()) + later * still
                progress(done, done + ahead, still)
        after.append(standing.copy())
    return after


def _in_batches(
    this: Round, standing: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (runs (B, 2): image and restart; fell (B,) bool) for every run still needed.

    `standing` is read anew as each batch is filled, so what the caller learns from one batch keeps
    fallen images out of later ones; batches reach across restarts. A result is fetched only when
    the next batch has been sent off, so the device never waits for the host. An image may be
    attacked once more while the news of its fall is on the way, which changes nothing.
    """
    queue = (
        (image, restart)
        for restart in range(this.restarts)
        for image in np.flatnonzero(standing)
        if standing[image]
    )
    in_flight: deque[tuple[np.ndarray, jax.Array]] = deque()
    while batch := list(itertools.islice(queue, batch_size)):
        runs = np.asarray(batch, np.int32)
        # The last batch is filled up with copies of its first run, dropped again afterwards.
        full = np.concatenate([runs, np.repeat(runs[:1], batch_size - len(runs), axis=0)])
        in_flight.append((runs, this.judge(full[:, 0], full[:, 1])))
        if len(in_flight) > 1:
            sent, fell = in_flight.popleft()
            yield sent, np.asarray(fell)[: len(sent)]
    for sent, fell in in_flight:
        yield sent, np.asarray(fell)[: len(sent)]
