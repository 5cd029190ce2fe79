"""Claims: processes that share a folder divide named work among them, without a server.

The claim on NAME is the file .NAME.1.claim. The process that creates it owns NAME and touches the
file regularly. If it dies, another process takes over: it creates .NAME.2.claim. Nobody changes or
removes the claim of another process while NAME is not finished, so the numbers only grow, and the
file with the highest number says who owns NAME. Whoever finishes NAME removes them all.

A file is created exclusively, so exactly one process gets each number. This holds on local file
systems and on NFS from version 3. No locks are used, since some file systems of clusters have none.

An owner counts as dead in two cases:

- It ran on this machine, and there is no such process any more.
- Its file did not change for as long as the file says (`Claims.stale_s`). The process that waits
  measures this time by its own clock, so the clocks of the machines need not agree.

Guarantees:

- At any time at most one process owns a name, as far as each process touches its files in time.
- An owner that was suspended for too long, and was therefore replaced, learns it at its next sign
  of life, or when it asks `holds`: its claim is `lost`.
- Work that a dead process owned is free again, at once on the same machine and after `stale_s`
  elsewhere.

To do work once, look after `take` whether it is done already: another process may have finished
it just before. Write the result before `finish`, into the same folder: a new file in a folder makes
NFS look at the folder again.
"""

import contextlib
import dataclasses
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from irp_jax.errors import UserError

STALE_S = 180.0
"""Default time in seconds. It exceeds the minute for which NFS may show an old file."""

_BEATS = 6
"""Signs of life within `stale_s`: some may come late."""


@dataclasses.dataclass(frozen=True, eq=False)
class Claim:
    """The ownership of a name by this process. `Claims.take` makes it."""

    stem: Path
    """Path of the claim's files up to their number."""
    number: int
    """Number of this process's file."""
    on_lost: Callable[[], object]
    """Called once in another thread when another process has taken over."""
    lost: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when another process has taken over."""


class Claims:
    """The claims of this process in a shared folder. A context manager; its end gives all back."""

    def __init__(self, folder: Path, stale_s: float = STALE_S) -> None:
        """Prepares claims.

        Args:
            folder: an existing folder that all processes share.
            stale_s: seconds without a sign of life after which others may take over the claims of
                this process.
        """
        self.folder, self.stale_s = folder, stale_s
        self._held: set[Claim] = set()
        self._seen: dict[Path, tuple[Any, float]] = {}
        self._closing = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def take(self, name: str, on_lost: Callable[[], object] = lambda: None) -> Claim | None:
        """Returns a claim on a name, or None if a living process has it.

        Args:
            name: the start of a file name.
            on_lost: called once in another thread when another process has taken over.

        Raises:
            UserError: the folder cannot be written.
        """
        stem, number = self.folder / name, 0
        while _path(stem, number + 1).exists():
            number += 1
        if number and not self._is_free(_path(stem, number)):
            return None
        me = {"place": _place(), "pid": os.getpid(), "stale_s": self.stale_s}
        if not _create(_path(stem, number + 1), me):
            return None  # another process was quicker
        claim = Claim(stem, number + 1, on_lost)
        self._held.add(claim)
        return claim

    def holds(self, claim: Claim) -> bool:
        """Looks whether no other process has taken over. Otherwise sets `claim.lost`."""
        own, following = (_path(claim.stem, claim.number + more) for more in (0, 1))
        if following.exists() or not own.exists():
            claim.lost.set()
        return not claim.lost.is_set()

    def finish(self, claim: Claim) -> None:
        """Gives up a name whose work is done. No files of the claim remain."""
        self._held.discard(claim)
        for number in range(claim.number, 0, -1):
            with contextlib.suppress(OSError):  # a file that remains does no harm
                _path(claim.stem, number).unlink()

    def give_back(self, claim: Claim) -> None:
        """Gives up a name whose work is not done. Another process may take it at once."""
        self._held.discard(claim)
        with contextlib.suppress(UserError):  # then others wait until it is stale
            _create(_path(claim.stem, claim.number + 1), {"free": True})

    def _is_free(self, path: Path) -> bool:
        """Returns whether the owner of the file is dead or gave it back."""
        try:
            with open(path) as file:  # opening makes NFS ask the server
                text, changed = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return False  # finished at this moment
        try:
            owner = dict(json.loads(text))
        except (TypeError, ValueError):  # it is being written, or the disk was full
            owner = {}
        if owner.get("free"):
            return True
        if owner.get("place") == _place() and not _lives(owner["pid"]):
            return True
        now = time.monotonic()
        before, since = self._seen.get(path, (None, now))
        if before != (text, changed):
            since = now
        self._seen[path] = (text, changed), since
        return now - since > owner.get("stale_s", self.stale_s)

    def _beat(self) -> None:
        while not self._closing.wait(self.stale_s / _BEATS):
            for claim in list(self._held):
                with contextlib.suppress(OSError):  # the network may be away for a while
                    if self.holds(claim):
                        os.utime(_path(claim.stem, claim.number))
                    elif claim in self._held:  # it may have been given up just now
                        self._held.discard(claim)
                        claim.on_lost()

    def __enter__(self) -> Self:
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._beating.join()
        for claim in list(self._held):
            self.give_back(claim)


def _path(stem: Path, number: int) -> Path:
    return stem.with_name(f".{stem.name}.{number}.claim")


def _create(path: Path, content: dict[str, Any]) -> bool:
    """Creates a file; returns whether it did not exist.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        with open(path, "x") as file:
            json.dump(content, file)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): make the folder writable, or choose another"
        ) from error
    return True


def _lives(pid: int) -> bool:
    """Returns whether a process of this machine exists; True if that cannot be found out."""
    if os.name != "posix":  # os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _place() -> str:
    """Returns a text that is equal for two processes only if they see each other's numbers.

    Host names do not tell: containers and copied machines may share one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{uuid.getnode():x}"
