"""Where a campaign of attacks stands, in memory and in a file."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irp_jax import files
from irp_jax.errors import UserError


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
    """

    standing: np.ndarray
    runs: np.ndarray
    felled_by: np.ndarray
    images: np.ndarray
    finished: int = 0
    standing_after: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()


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
    """What a setting consists of, the same in every process: functions by their names."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: _facts(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value).__qualname__, fields
    if callable(value):
        return value.__module__, value.__qualname__
    return value


def write(path: Path, at: Standings, name: str, logits: np.ndarray) -> None:
    """Writes the file whole or not at all.

    Args:
        path: .npz file.
        at: the standings.
        name: the campaign's `identity`.
        logits: (N, K) of the clean images, by which the network is known again.

    Raises:
        UserError: it cannot be written.
    """
    arrays = {field.name: getattr(at, field.name) for field in dataclasses.fields(at)}
    arrays |= {
        "standing_after": np.array(at.standing_after, np.int64),
        "seconds": np.array(at.seconds, np.float64),
    }
    files.write_whole(
        path, lambda file: np.savez(file, identity=np.array(name), logits=logits, **arrays)
    )


def read(path: Path, name: str, logits: np.ndarray) -> Standings | None:
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
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): remove it to start anew") from error
    tolerance = 1e-3 * max(1.0, float(np.abs(logits).max()))
    if found != name or not np.allclose(arrays["logits"], logits, rtol=0, atol=tolerance):
        raise UserError(
            f"{path} belongs to an evaluation with other images, attacks or another network: "
            "remove it, or choose another file"
        )
    return at
