"""Commands of this package as child processes: several run at once, and all stop together.

A command also ends when the process that started it is killed (`parent.py`).
"""

import contextlib
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from irp_jax import machine
from irp_jax.errors import UserError
from irp_jax.sweep.parent import child_environment


class Commands:
    """The running commands.

    Attributes:
        stopping: set once all commands shall stop; a command that starts later stops at once.
        running: process -> the log that it writes to.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.running: dict[subprocess.Popen, Path] = {}

    def run(self, command: str, flags: list[str], log: Path, cores: set[int]) -> None:
        """Runs bin/`command` to its end. The calling thread stays on `cores` from then on.

        Args:
            command: for instance "train".
            flags: its flags.
            log: file to which the command line and all output are appended.
            cores: the only CPU cores that it may use.

        Raises:
            UserError: the command failed; the message is the last error that it printed.
        """
        machine.stay_on(cores)  # a child process inherits the cores of the thread that starts it
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.write("$ " + shlex.join([f"bin/{command}", *flags]) + "\n")
            file.flush()
            begin = file.tell()
            child = subprocess.Popen(
                # -P as in bin/: no module is imported from the working directory.
                [sys.executable, "-P", "-m", f"irp_jax.cli.{command}", *flags],
                stdout=file,
                stderr=file,
                env=child_environment(),
            )
        self.running[child] = log
        if self.stopping.is_set():  # may have been set before the child was added
            child.terminate()
        try:
            failed = child.wait()
        finally:
            del self.running[child]
        if failed:
            raise UserError(last_error(log, begin) or f"bin/{command} ended with code {failed}")

    def stop(self, log: Path) -> None:
        """Terminates the command that writes to `log`, if there is one."""
        for child, its_log in list(self.running.items()):
            if its_log == log:
                child.terminate()

    def stop_all(self) -> None:
        """Terminates all commands; those that start later stop at once."""
        self.stopping.set()
        for child in list(self.running):
            child.terminate()

    @contextlib.contextmanager
    def stopped_together(self) -> Iterator[None]:
        """Terminates all commands if this process is interrupted or terminated within the block.

        Otherwise they would keep running and keep their folders locked, so that the sweep could not
        be resumed. Signals that are ignored, for instance under nohup, stay ignored. To be called
        in the main thread.
        """

        def stop(*_: object) -> None:
            self.stop_all()
            raise KeyboardInterrupt

        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in stops}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def last_error(log: Path, begin: int) -> str | None:
    """Returns the last error in a log after byte `begin`, or None.

    Other output may lie there too: a child of an earlier sweep that was killed may still write to
    the log.
    """
    with open(log, "rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else None
