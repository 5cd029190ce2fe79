"""When a run is saved: after an epoch, within a long one, and before SIGTERM stops it."""

import time
from collections.abc import Callable
from pathlib import Path

from irp_jax import hosts
from irp_jax.training import checkpoints, underway
from irp_jax.training.preemption import Preemption
from irp_jax.training.progress import Progress, Setup
from irp_jax.training.segments import Begun

SHARE = 20
"""Saves within an epoch take at most one part in so many of the time."""


class Saves:
    """Saves a run when it is due, and stops it when that was asked for and its state is saved.

    Of several processes, the first writes the files. All stop at the same point: whether to stop is
    decided from what all knew one segment before, so that no device waits for the answer.
    """

    def __init__(
        self, setup: Setup, progress: Progress, workdir: Path, preemption: Preemption
    ) -> None:
        """Begins to measure the time since the last save.

        Args:
            setup: of the run.
            progress: at the start, or as it was resumed.
            workdir: of the run.
            preemption: may ask the run to stop.
        """
        self._setup, self._workdir, self._preemption = setup, workdir, preemption
        self._every = setup.config.checkpoint_every
        self._saved_at = self._epoch_saved_at = time.monotonic()
        self._took, self._is_current = 0.0, True
        self._answer: Callable[[], bool] = lambda: False
        # The epoch whose start is saved as it is. After a rollback, the start saved is another one.
        self._start = progress.epoch if self._is_on_disk(progress.epoch) else None

    def _is_on_disk(self, epoch: int) -> bool:
        return (self._workdir / checkpoints.CHECKPOINTS / str(epoch)).is_dir()

    def _poll(self) -> bool:
        """Returns whether a process was asked to stop; all call it at the same points."""
        if not hosts.is_several():
            return self._preemption.asked
        asked, self._answer = self._answer(), hosts.any_of(self._preemption.asked)
        return asked

    def within_epoch(
        self, progress: Progress, healthy: Progress | None, since: float, begun: Begun
    ) -> None:
        """Saves the epoch under way, if this is due and its start can be resumed from.

        Args:
            progress: at the start of the epoch.
            healthy: the last sound state, which the guard keeps; None without a guard.
            since: when the epoch began, on the clock of `time.monotonic`.
            begun: what was done of the epoch.

        Raises:
            Preempted: the run was asked to stop, and the epoch under way is saved.
        """
        self._preemption.hold()  # what was done since the last save must not be lost
        asked = self._poll()
        if begun.segments == self._setup.plan.segments:
            return  # `after_epoch` saves it
        now = time.monotonic()
        pause = max(self._every, SHARE * self._took) if self._every else 0.0
        saved = False
        if (asked or now - self._saved_at > pause) and self._saved_start(progress, healthy, begun):
            saved = underway.save(self._setup, progress, begun, now - since, self._workdir)
            self._saved_at = time.monotonic()
            self._took = self._saved_at - now
        if asked:
            saved = hosts.agreed(saved)
        if saved:
            self._release(asked)

    def _saved_start(self, progress: Progress, healthy: Progress | None, begun: Begun) -> bool:
        """Returns whether the start of the epoch is saved, and saves it if it can."""
        if self._start == progress.epoch:
            return True
        if healthy is None or healthy.epoch != progress.epoch or begun.state.memory is not None:
            return False  # its arrays are no more, or it is not sound
        if self._is_on_disk(progress.epoch):
            return False  # as it was before a rollback
        self._save(healthy)
        return True

    def after_epoch(self, progress: Progress, *, sound: bool) -> None:
        """Saves a state at the end of an epoch that is not the last, if this is due.

        Only sound states are saved, so that a resumed run rolls back to the same state.

        Raises:
            Preempted: the run was asked to stop.
        """
        self._is_current = False
        asked = self._poll()
        # Saves within the epoch do not count: what is saved within an epoch needs its start.
        due = asked or time.monotonic() - self._epoch_saved_at > self._every
        if due and progress.epoch < self._setup.plan.epochs:
            if sound:
                self._save(progress)
            self._release(asked)

    def changed(self) -> None:
        """Notes that the state is another one than at the end of the last epoch."""
        self._is_current = False

    def finish(self, progress: Progress) -> None:
        """Saves the last state, and removes what was saved within an epoch.

        Raises:
            Preempted: the run was asked to stop.
        """
        if not self._is_current:
            self._save(progress)
        underway.discard(self._workdir)
        self._release(self._answer() or hosts.any_of(self._preemption.asked)())

    def rolled_back(self) -> None:
        """Forgets what was saved of the epochs that the guard undid."""
        self._start = None
        underway.discard(self._workdir)

    def _save(self, progress: Progress) -> None:
        checkpoints.save(self._setup, progress, self._workdir)
        self._saved_at = self._epoch_saved_at = time.monotonic()
        self._start, self._is_current = progress.epoch, True

    def _release(self, asked: bool) -> None:
        """Lets the run stop; of several processes, each only if all do."""
        if asked:
            self._preemption.asked = True
        if asked or not hosts.is_several():
            self._preemption.release()
