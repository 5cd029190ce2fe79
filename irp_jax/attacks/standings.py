"""Where a campaign of attacks stands, in memory and in a file."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from irp_jax import files
from irp_jax.errors import UserError


class Answers(NamedTuple):
    """What tells one network from another.

    Attributes:
        logits: (N, K) of the clean images.
        gradients: (B, H, W, C), of the margin of the first few. Two networks may answer alike and
            differ here, as one that quantises does from one whose gradient passes straight through.
    """

    logits: np.ndarray
    gradients: np.ndarray


def _close(saved: np.ndarray | None, answer: np.ndarray) -> bool:
    """Equal to the rounding of the network, which another batch size or device may move."""
    if saved is None or saved.shape != answer.shape:
        return False
    largest = float(np.abs(answer).max(initial=0.0))
    return np.allclose(saved, answer, rtol=0, atol=1e-3 * largest + 1e-30, equal_nan=True)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Standings:
    """All that is needed to go on with a campaign.

    Runs under way are not part of it: they are begun again, and go as they went before.

    Attributes:
        standing: (N,) bool, images that nothing has made fall.
        runs: (N,) int32, runs of the attack under way that each standing image has survived.
        felled_by: (N,) int32: -1 for natural errors and images standing, else the attack's place in
            the list.
        images: (N, H, W, C) float32: the adversarial image of those that fell, else the clean one.
        finished: attacks completed.
        standing_after: how many stood after each of them.
        seconds: that each took, up to now.
        unverified: finds of each, up to now, that did not hold up when shown once more.
    """

    standing: np.ndarray
    runs: np.ndarray
    felled_by: np.ndarray
    images: np.ndarray
    finished: int = 0
    standing_after: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    unverified: tuple[int, ...] = ()


def at_first(images: np.ndarray, standing: np.ndarray) -> Standings:
    """Before the first attack.

    Args:
        images: (N, H, W, C) float32.
        standing: (N,) bool, those classified correctly as they are.
    """
    count = len(images)
    return Standings(
        standing=standing.copy(),
        runs=np.zeros(count, np.int32),
        felled_by=np.full(count, -1, np.int32),
        images=np.array(images, np.float32),
    )


def identity(images: np.ndarray, labels: np.ndarray, settings: Sequence[Any]) -> str:
    """A digest of what makes two campaigns on one network the same.

    Args:
        images: (N, H, W, C) float32.
        labels: (N,) int32.
        settings: dataclasses (attacks, the threat) and what else matters, such as the seed.
    """
    facts = [_facts(setting) for setting in settings]
    digest = hashlib.sha256(repr(facts).encode())
    for array in (images, labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _facts(value: Any) -> Any:
    """What a setting consists of, the same in every process: functions by their names.

    Raises:
        UserError: a function has no name of its own, by which to know it again.
    """
    if dataclasses.is_dataclass(value):
        fields = {f.name: _facts(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value).__qualname__, fields
    if callable(value):
        name = getattr(value, "__qualname__", "")
        if not name or "<" in name:
            raise UserError(
                f"{value!r} has no name that a state file could know it by: define it at the top "
                "of a module, or leave out state_file"
            )
        return value.__module__, name
    return value


def write(path: Path, at: Standings, name: str, answers: Answers) -> None:
    """Writes the file whole or not at all.

    Args:
        path: .npz file.
        at: the standings.
        name: the campaign's `identity`.
        answers: by which the network is known again.

    Raises:
        UserError: it cannot be written.
    """
    arrays = {field.name: getattr(at, field.name) for field in dataclasses.fields(at)}
    arrays |= {
        "standing_after": np.array(at.standing_after, np.int64),
        "seconds": np.array(at.seconds, np.float64),
        "unverified": np.array(at.unverified, np.int64),
    }
    arrays |= {"identity": np.array(name), **answers._asdict()}
    files.write_whole(path, lambda file: np.savez(file, **arrays))


def read(path: Path, name: str, answers: Answers) -> Standings | None:
    """The standings of the campaign of that `identity` and network; None where there is no file.

    Raises:
        UserError: the file is damaged, or of another campaign.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {key: saved[key] for key in saved.files}
        found = str(arrays.pop("identity"))
        at = Standings(
            standing=arrays["standing"],
            runs=arrays["runs"],
            felled_by=arrays["felled_by"],
            images=arrays["images"],
            finished=int(arrays["finished"]),
            standing_after=tuple(int(count) for count in arrays["standing_after"]),
            seconds=tuple(float(time) for time in arrays["seconds"]),
            unverified=tuple(int(count) for count in arrays["unverified"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): remove it to start anew") from error
    alike = all(_close(arrays.get(part), answer) for part, answer in answers._asdict().items())
    if found != name or not alike:
        raise UserError(
            f"{path} belongs to an evaluation with other images, attacks or another network: "
            "remove it, or choose another file"
        )
    return at
