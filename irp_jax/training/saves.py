"""When a run is saved: after an epoch, within a long one, and before SIGTERM stops it."""

import time
from pathlib import Path

from irp_jax import hosts
from irp_jax.training import checkpoints, underway
from irp_jax.training.preemption import Preemption
from irp_jax.training.progress import Progress, Setup
from irp_jax.training.segments import Begun


class Saves:
    """Saves a run when it is due.

    Attributes:
        is_current: whether the last state at the end of an epoch is saved.
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
        self._at, self.is_current = time.monotonic(), True
        # The epoch whose start is saved as it is. After a rollback, the start saved is another one.
        self._start = progress.epoch if self._is_on_disk(progress.epoch) else None

    def _is_on_disk(self, epoch: int) -> bool:
        return (self._workdir / checkpoints.CHECKPOINTS / str(epoch)).is_dir()

    def _due(self) -> bool:
        if hosts.any_of(self._preemption.asked):
            self._preemption.asked = True
        late = time.monotonic() - self._at > self._setup.config.checkpoint_every
        return self._preemption.asked or late

    def after_epoch(self, progress: Progress, *, sound: bool) -> None:
        """Saves a state at the end of an epoch that is not the last, if this is due.

        Only sound states are saved, so that a resumed run rolls back to the same state.

        Raises:
            Preempted: the run was asked to stop.
        """
        self.is_current = False
        if self._due() and progress.epoch < self._setup.plan.epochs:
            if sound:
                self.now(progress)
            self._release()

    def now(self, progress: Progress) -> None:
        """Saves a state at the end of an epoch."""
        checkpoints.save(self._setup, progress, self._workdir)
        self._at, self._start, self.is_current = time.monotonic(), progress.epoch, True

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
            Preempted: the run was asked to stop.
        """
        self._preemption.hold()  # what was done since the last save must not be lost
        if begun.segments == self._setup.plan.segments or not self._due():
            return  # at the end of an epoch, `after_epoch` saves it
        kept = healthy is not None and healthy.epoch == progress.epoch
        can_be_saved = begun.state.memory is None and not self._is_on_disk(progress.epoch)
        if self._start != progress.epoch and kept and can_be_saved:
            assert healthy is not None
            self.now(healthy)
        if self._start == progress.epoch:
            seconds = time.monotonic() - since
            underway.save(self._setup, progress, begun, seconds, self._workdir)
            self._at = time.monotonic()
        self._release()

    def _release(self) -> None:
        # Several processes stop at the same point, so none of them may stop at once.
        if self._preemption.asked or not hosts.is_several():
            self._preemption.release()

    def rolled_back(self) -> None:
        """Forgets what was saved of the epochs that the guard undid."""
        self._start = None
        underway.discard(self._workdir)
