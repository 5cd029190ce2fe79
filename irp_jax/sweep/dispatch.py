"""The runs of a sweep: several at a time, each by one of the processes that share the folder."""

import functools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from typing import Any

from rich.console import Console

from irp_jax import config as configs
from irp_jax import files
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.sweep.child_processes import Commands
from irp_jax.sweep.claims import Claim, Claims
from irp_jax.sweep.one_run import Wanted, collect, collected, is_complete, train_and_attack

_LOOK_S = 5.0
"""Seconds between two looks at the runs of other processes."""


class Dispatch:
    """Does runs until each is done, by this process or another one, or has failed here.

    Attributes:
        found: number of a run -> its results.
        failed: number of a run -> why it failed in this process.
    """

    def __init__(
        self,
        runs: list[Config],
        wanted: Wanted,
        claims: Claims,
        commands: Commands,
        console: Console,
    ) -> None:
        """Prepares the work.

        Args:
            runs: the settings; they are numbered from 1.
            wanted: what each needs.
            claims: where processes that share the runs claim them, by the name of the workdir.
            commands: runs the commands.
            console: where the progress is printed.
        """
        self.found: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, str] = {}
        self._runs = dict(enumerate(runs, start=1))
        self._wanted, self._claims, self._commands = wanted, claims, commands
        self._console, self._began = console, time.monotonic()
        self._doing: set[int] = set()
        self._changed = threading.Event()

    def work(self, shares: list[set[int]]) -> None:
        """Does the runs.

        Args:
            shares: the CPU cores of each of the runs that are done at a time.
        """
        free: Queue[set[int]] = Queue()
        for share in shares:
            free.put(share)
        begun: list[Future] = []
        look_s, told = min(_LOOK_S, self._claims.stale_s / 10), False
        with ThreadPoolExecutor(len(shares)) as pool:
            while self._open() and not self._commands.stopping.is_set():
                share = free.get()
                self._changed.clear()
                claimed = self._claim()
                if claimed is not None:
                    begun.append(pool.submit(self._do, *claimed, share, free))
                    continue
                free.put(share)
                elsewhere = len(self._open() - self._doing)
                if elsewhere and not told:
                    told = True
                    self._console.print(
                        f"{elsewhere} of {len(self._runs)} runs are done by other processes: "
                        f"waiting for them"
                    )
                if self._open():
                    self._changed.wait(look_s if elsewhere else None)
        for future in begun:
            future.result()  # raises what is no error of the user

    def _open(self) -> set[int]:
        """Returns the numbers of the runs without an outcome."""
        return self._runs.keys() - self.found.keys() - self.failed.keys()

    def _claim(self) -> tuple[int, Claim] | None:
        """Claims the first run that nobody does; notes those that are done."""
        for number in sorted(self._open() - self._doing):
            run = self._runs[number]
            try:
                if self._is_done(number) or files.in_use(configs.workdir(run)):
                    continue
                log = configs.workdir(run) / "log.txt"
                stop = functools.partial(self._commands.stop, log)
                claim = self._claims.take(configs.workdir(run).name, on_lost=stop)
            except (UserError, OSError) as error:
                self._fail(number, error)
                continue
            if claim is not None:
                self._doing.add(number)
                return number, claim
        return None

    def _do(self, number: int, claim: Claim, share: set[int], free: Queue[set[int]]) -> None:
        """Does a claimed run, unless another process has done it just before."""
        run = self._runs[number]
        log, finished = configs.workdir(run) / "log.txt", False

        def call(command: str, flags: list[str]) -> None:
            if not self._claims.holds(claim):
                raise UserError("another process has taken over this run")
            self._commands.run(command, flags, log=log, cores=share)

        try:
            if not self._is_done(number):
                self._say(number, "begins, see its log.txt")
                before = collected(run, self._wanted)
                results = train_and_attack(run, before, self._wanted, call)
                if self._claims.holds(claim):
                    collect(run, results, self._wanted)
                    self._note(number, results, "done")
            finished = number in self.found
        except BrokenPipeError:
            raise
        except Exception as error:  # the other runs continue
            expected = isinstance(error, UserError | OSError)
            if not expected or not (claim.lost.is_set() or self._commands.stopping.is_set()):
                self._fail(number, error)
            if not expected:
                raise
        finally:
            (self._claims.finish if finished else self._claims.give_back)(claim)
            self._doing.discard(number)
            free.put(share)
            self._changed.set()

    def _is_done(self, number: int) -> bool:
        """Returns whether the results are collected, and notes them."""
        results = collected(self._runs[number], self._wanted)
        if results is None or not is_complete(results, self._wanted):
            return False
        self._note(number, results, "was done")
        return True

    def _note(self, number: int, results: dict[str, Any], word: str) -> None:
        self.found[number] = results
        self._say(number, f"{word}, {time.monotonic() - self._began:.0f} s")

    def _fail(self, number: int, error: Exception) -> None:
        self.failed[number] = str(error)
        self._say(number, f"failed, {time.monotonic() - self._began:.0f} s")

    def _say(self, number: int, text: str) -> None:
        run = f"[{number}/{len(self._runs)}] {self._runs[number].workdir}"
        try:
            self._console.print(f"{run} {text}", markup=False)
        except BrokenPipeError:  # nobody reads the output: the sweep ends, as on a signal
            self._commands.stop_all()
            raise
