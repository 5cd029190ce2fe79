"""Files and folders of a run, except its checkpoints.

Of several processes, only the first writes: see `hosts`.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from irp_jax import hosts
from irp_jax.errors import UserError


def is_full(error: BaseException) -> bool:
    """Returns whether a write failed because the disk or the user's quota is full."""
    full = (errno.ENOSPC, errno.EDQUOT)
    # Some libraries raise their own exceptions, which contain the system's message.
    return getattr(error, "errno", None) in full or any(os.strerror(n) in str(error) for n in full)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON. The file is written completely or not at all.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    write_bytes(path, as_bytes(value))


def as_bytes(value: Any) -> bytes:
    """Returns the content of a JSON file with this value."""
    return (json.dumps(value, indent=2) + "\n").encode()


@hosts.by_first
def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file completely or not at all.

    Args:
        path: the file; its parent folders are made.
        write: called with the open file; writes its content.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    if not path.name:
        raise UserError(f"cannot write {str(path)!r}: it is not a file name")
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        advice = "free some space or choose another place"
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): "
            f"{advice if is_full(error) else 'choose another place'}"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes to a file, as `write_whole` does."""
    write_whole(path, lambda file: file.write(content))


@hosts.by_first
def write_folder(
    folder: Path, contents: Mapping[str, bytes], *, dropped: Collection[str] = ()
) -> None:
    """Writes the files of a folder, all of them or none.

    An existing folder is replaced. Its other files are moved to the new one. A replacement that was
    interrupted is completed or undone by the next one.

    Args:
        folder: the folder; its parent folders are made.
        contents: name of a file -> its content.
        dropped: names of files that are not moved to the new folder.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    folder = folder.resolve()  # a link is kept, and "." has a name
    make_folder(folder.parent)
    unfinished, old = folder.with_name(f".{folder.name}.new"), former(folder)
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    _finish(folder, old, dropped)
    try:
        for name, content in contents.items():
            write_bytes(unfinished / name, content)
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror or error}): choose another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        _finish(folder, old, dropped)


def former(folder: Path) -> Path:
    """Returns where a folder is for a moment while `write_folder` replaces it."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.old")


def _finish(folder: Path, old: Path, dropped: Collection[str]) -> None:
    """Completes the replacement of a folder, or undoes it if there is no new folder."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    elif old.exists():
        for path in old.iterdir():
            if path.name not in dropped and not (folder / path.name).exists():
                path.rename(folder / path.name)
        shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@hosts.by_first
def check_place(path: Path) -> None:
    """Checks that a file can be written. Called before the work whose result it will hold.

    Raises:
        UserError: the path is not a file name, or its folder cannot be written.
    """
    above = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not path.name or path.is_dir() or not above.is_dir() or not _is_writable(above):
        raise UserError(f"cannot write {str(path)!r}: choose another place")


def _is_writable(folder: Path) -> bool:
    """Returns whether a file can be made in a folder. Permissions alone do not tell, for root."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@hosts.by_first
def make_folder(path: Path) -> None:
    """Makes a folder. Called before the work whose results it will hold.

    Raises:
        UserError: the path is a file, or the folder cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = None if _is_writable(path) else "it is not writable"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise UserError(f"cannot use {path} as a folder ({reason}): choose another")


def as_json(value: Any) -> Any:
    """Returns a value as it is after writing and reading: tuples become lists, keys text."""
    return json.loads(json.dumps(value))


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if there is no such file.

    Raises:
        UserError: the file is damaged, unreadable or a folder.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder where a JSON file is needed: give the file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {path} as JSON ({error}): move it away, or choose another place"
        ) from error


@contextlib.contextmanager
def lock(folder: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Makes the folder of a run, or reuses that of the same run, and locks it for this process.

    Args:
        folder: the workdir.
        identity: the settings that must be equal for two runs to be the same.

    Raises:
        UserError: the folder cannot be written, belongs to a different config, or is in use.
    """
    if not hosts.is_first():  # the first process locks it for all
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"cannot write to workdir {folder} ({error.strerror}): choose another with --workdir"
        ) from error
    with held:
        try:
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"workdir {folder} is in use by another run: choose another") from None
        except (ImportError, OSError):
            pass  # Windows and the file systems of some clusters have no such locks
        found = read_json(folder / "config.json")
        if found is None:
            # Checkpoints say whose they are. They are checked before anything is changed.
            known = any(path.name.isdecimal() for path in folder.glob("checkpoints/*"))
            for name in ("results.json", "metrics.jsonl"):
                if (folder / name).exists() and not known:
                    raise UserError(
                        f"{folder} has {name} but no config.json that identifies the run: choose "
                        f"another --workdir"
                    )
        else:
            whose = found.get("identity") if isinstance(found, dict) else None
            if not isinstance(whose, dict):
                raise UserError(
                    f"{folder / 'config.json'} is not of a run of this version: choose another "
                    f"--workdir"
                )
            differing = sorted(k for k in {*identity, *whose} if identity.get(k) != whose.get(k))
            if differing:
                what = ", ".join(
                    f"{k}={str(whose.get(k, 'default'))[:20]}, not "
                    f"{str(identity.get(k, 'the default'))[:20]}"
                    for k in differing[:3]
                )
                raise UserError(
                    f"workdir {folder} holds a different run ({what}): choose another --workdir"
                )
        yield


def in_use(folder: Path) -> bool:
    """Returns whether a process has claimed the folder of a run, as far as locks tell."""
    try:
        import fcntl

        with (folder / ".lock").open() as held:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no such folder, or no locks
        return False
    return False


@hosts.by_first
def truncate_log(path: Path, epoch: int) -> None:
    """Removes the lines of epochs after `epoch`. A resumed run writes them again."""
    if not path.exists():
        return
    rows = [
        line + "\n"
        for line in path.read_text(errors="replace").splitlines()
        if (number := _epoch_of(line)) is not None and number <= epoch
    ]
    write_whole(path, lambda file: file.write("".join(rows).encode()))


def _epoch_of(line: str) -> int | None:
    """Returns the epoch of a line of a log; None for what a killed run or a bad disk left there."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, TypeError, LookupError):
        return None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a log of JSON lines; an empty list if there is no log."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@hosts.by_first
def append_log(path: Path, row: dict[str, Any]) -> None:
    """Appends one line of JSON to a log.

    Raises:
        UserError: the disk is full, or the file is not writable.
    """
    try:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that is written next must not outlive the line
    except OSError as error:
        advice = "free some space" if is_full(error) else "make it writable"
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): {advice} and run again to resume"
        ) from error


def commit() -> str | None:
    """Returns the commit of the running code, with "+" appended if files differ from it.

    Returns None if the package is not in its own repository. An installed package may lie within
    the repository of another project.
    """
    here = Path(__file__).parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        if _git(here, "rev-parse", "--show-prefix") != f"{here.name}/":
            return None
        head = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
