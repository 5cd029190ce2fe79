"""SIGTERM, which a scheduler sends before it takes a machine away: a run saves its state and stops.

A run stops at once if everything but the present segment is saved. Otherwise it stops after the
segment, when the epoch under way is saved.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

EXIT_CODE = 128 + signal.SIGTERM
"""Exit code of a process that SIGTERM stopped, as shells report it. A scheduler that restarts
failed processes must not take it for a finished one."""


class Preempted(SystemExit):
    """Raised where SIGTERM stops a run. If nobody catches it, the process exits with 143."""

    def __init__(self) -> None:
        """Makes the exception."""
        super().__init__(EXIT_CODE)


class Preemption:
    """Whether a run was asked to stop, and whether it may stop at once.

    Attributes:
        asked: whether the run was asked to stop.
    """

    def __init__(self) -> None:
        """Makes a preemption that nobody asked for, of a run that may stop at once."""
        self.asked = False
        self._held = False

    def ask(self) -> None:
        """Asks the run to stop.

        Raises:
            Preempted: the run may stop at once.
        """
        self.asked = True
        if not self._held:
            raise Preempted

    def hold(self) -> None:
        """Lets the run continue until `release`, because something is not saved."""
        self._held = True

    def release(self) -> None:
        """Lets the run stop at once from now on.

        Raises:
            Preempted: the run was asked to stop.
        """
        self._held = False
        if self.asked:
            raise Preempted


@contextlib.contextmanager
def on_sigterm(note: Callable[[str], None], *, held: bool = False) -> Iterator[Preemption]:
    """Yields a preemption that SIGTERM asks for within the block.

    A handler that the caller has set is kept, and so is that of a thread other than the main one.

    Args:
        note: called with one line if SIGTERM stops the block.
        held: whether the run may not stop at once from the start: of several processes, one must
            not stop before the others know.

    Raises:
        Preempted: SIGTERM stopped the block.
    """
    preemption = Preemption()
    if held:
        preemption.hold()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield preemption
        return
    signal.signal(signal.SIGTERM, lambda *_: preemption.ask())
    try:
        yield preemption
    except Preempted:
        note("stopped by SIGTERM: the same command goes on from the last saved state")
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
