"""Commands of this package in processes of their own, several at once, which stop together."""

import contextlib
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from irp_jax import parallel
from irp_jax.errors import UserError


class Commands:
    """Those under way.

    Attributes:
        stopping: set once no command is to go on; those that begin later stop at once.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._running: set[subprocess.Popen] = set()

    def run(self, command: str, flags: list[str], log: Path, cores: set[int]) -> None:
        """Runs bin/`command` to its end, in a thread that has no other work: it stays on `cores`.

        Args:
            command: for instance "train".
            flags: what to type after it.
            log: file that it and what it prints are appended to.
            cores: the only ones it may use.

        Raises:
            UserError: it failed; says why in its own words.
        """
        parallel.stay_on(cores)  # a child stays where the thread that begins it is
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.write("$ " + shlex.join([f"bin/{command}", *flags]) + "\n")
            file.flush()
            begin = file.tell()
            child = subprocess.Popen(
                # -P as in bin/: no file of the user's folder is taken for a module.
                [sys.executable, "-P", "-m", f"irp_jax.cli.{command}", *flags],
                stdout=file,
                stderr=file,
            )
        self._running.add(child)
        if self.stopping.is_set():  # since before it was among them
            child.terminate()
        try:
            failed = child.wait()
        finally:
            self._running.discard(child)
        if failed:
            raise UserError(_error(log, begin) or f"bin/{command} ended with code {failed}")

    @contextlib.contextmanager
    def stopped_together(self) -> Iterator[None]:
        """Who is interrupted or terminated within takes the commands along.

        Left alone they would go on, and hold their folders against the sweep that resumes them.
        Signals that are ignored, as nohup has it, stay so. For the main thread.
        """

        def stop(*_: object) -> None:
            self.stopping.set()
            for child in list(self._running):
                child.terminate()
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


def _error(log: Path, begin: int) -> str | None:
    """The last error that was written to a log from a byte of it on.

    Another process may write there, too: what an earlier sweep that was killed has left running.
    """
    with open(log, "rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else None
