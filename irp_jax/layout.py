"""Writes and reads the folder of a saved network, which docs/saved_networks.md describes.

Nothing in the folder is executed as Python. Everything in it is checked before it is used: the
types in the record, the digests of the files, and the names and shapes of the arrays.
"""

import math
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from irp_jax import files, models
from irp_jax.errors import UserError

FORMAT = 3
"""Format of `network.json`. This version reads no other format."""

RECORD, ARRAYS, FUNCTION = "network.json", "arrays.npz", "function.stablehlo"

KINDS = {"params": "params", "state": "batch_stats"}
"""Kind of array in `arrays.npz` -> its key in the variables of a network."""

NUMBERS = (int, float)


def is_saved(folder: Path) -> bool:
    """Returns whether a folder holds a saved network."""
    return (folder / RECORD).is_file()


def write(
    folder: Path,
    record: Mapping[str, Any],
    variables: Mapping[str, Mapping[str, Any]],
    function: bytes | None,
) -> None:
    """Writes a saved network completely or not at all.

    Args:
        folder: the folder to make; one that holds a saved network is replaced.
        record: the record of the network.
        variables: {"params", "batch_stats"}, each name -> array.
        function: the function of the network as StableHLO; None leaves it out.

    Raises:
        UserError: the folder cannot be written, or holds something other than a saved network.
    """
    if folder.exists() and not is_saved(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something else: choose another folder")
    files.make_folder(folder.absolute().parent)
    unfinished, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    _finish(folder, old)
    arrays, dtypes = {}, {}
    for kind, place in KINDS.items():
        for name, array in variables[place].items():
            array = np.asarray(array)
            if array.dtype == jnp.bfloat16:  # NumPy has no such type
                dtypes[f"{kind}/{name}"] = "bfloat16"
                array = array.view(np.uint16)
            arrays[f"{kind}/{name}"] = array
    try:
        files.write_whole(unfinished / ARRAYS, lambda file: np.savez(file, **arrays))
        if function is not None:
            files.write_whole(unfinished / FUNCTION, lambda file: file.write(function))
        digests = {path.name: files.sha256(path) for path in sorted(unfinished.iterdir())}
        whole = {
            **record,
            "format": FORMAT,
            "dtypes": dtypes,
            "sha256": digests,
        }
        files.write_json(unfinished / RECORD, whole)
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror or error}): choose another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        _finish(folder, old)


def _finish(folder: Path, old: Path) -> None:
    """Completes or undoes the replacement of a folder, also one that was interrupted.

    If there is no new folder, the old one is restored. Otherwise the files of the old folder that
    are not of the network, for instance a model card, are moved to the new one.
    """
    if old.exists() and not folder.exists():
        old.rename(folder)
    elif old.exists():
        for path in old.iterdir():
            if path.name not in (RECORD, ARRAYS, FUNCTION):
                path.rename(folder / path.name)
        shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]], bytes | None]:
    """Reads a saved network.

    Returns:
        (record, variables, function) as given to `write`. The function is None if there is none.

    Raises:
        UserError: the folder has another format, is damaged, or was not written by `write`.
    """
    record = files.read_json(folder / RECORD)
    if isinstance(record, dict) and record.get("format", 1) != FORMAT:
        raise UserError(
            f"{folder / RECORD} is of format {record.get('format', 1)}, and this version reads "
            f"{FORMAT}: use the version of irp_jax that wrote it"
        )
    fault = _fault(record)
    if fault is not None:
        raise UserError(
            f"{folder / RECORD} is not the record of a network ({fault}): fetch the network again"
        )
    for name, digest in record["sha256"].items():
        if not (folder / name).is_file() or files.sha256(folder / name) != digest:
            raise UserError(f"{folder / name} is damaged or missing: fetch the network again")
    variables: dict[str, dict[str, np.ndarray]] = {place: {} for place in KINDS.values()}
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as found:
            for key in found.files:
                kind, _, name = key.partition("/")
                array = found[key]
                if record["dtypes"].get(key) == "bfloat16":
                    array = array.view(jnp.bfloat16)
                if array.dtype.kind not in "fiub" and array.dtype != jnp.bfloat16:
                    raise ValueError(f"{key} holds no numbers")
                variables[KINDS[kind]][name] = array
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise UserError(
            f"{folder / ARRAYS} is not what a saved network holds ({type(error).__name__}): fetch "
            f"the network again"
        ) from error
    function = (folder / FUNCTION).read_bytes() if FUNCTION in record["sha256"] else None
    for name in ("format", "dtypes", "sha256"):  # these describe the files, not the network
        del record[name]
    return record, variables, function


def _fault(record: Any) -> str | None:
    """Returns a text that says what is wrong with a record, or None if it is valid."""
    if not isinstance(record, dict):
        return "it is no JSON object"
    known: dict[str, Callable[[Any], Any]] = {
        "model": lambda v: isinstance(v, dict) and _is_model(v),
        "class_names": lambda v: isinstance(v, list) and v and all(isinstance(n, str) for n in v),
        "image_shape": lambda v: isinstance(v, list) and len(v) == 3 and _are_counts(v),
        "groups": lambda v: isinstance(v, dict) and _are_counts(v.values()),
        "keep_counts": lambda v: isinstance(v, dict) and _are_counts(v.values()),
        "granularity": lambda v: v in ("channel", "weight"),
        "cost": lambda v: isinstance(v, dict) and not COSTS - set(v) and _are_numbers(v.values()),
        "epochs": lambda v: isinstance(v, int),
        "trained": lambda v: isinstance(v, dict) and not TRAINED - set(v) and _is_share(v),
        "sha256": lambda v: isinstance(v, dict) and ARRAYS in v and set(v) <= {ARRAYS, FUNCTION},
        "format": lambda v: v == FORMAT,
        "dtypes": lambda v: isinstance(v, dict),
    }
    for name, is_sound in known.items():
        if name not in record:
            return f"it has no {name}"
        if not is_sound(record[name]):
            return f"its {name} is invalid"
    if math.prod(record["image_shape"]) > 2**31:
        return "its images are too large"
    epsilon = record["trained"]["epsilon"]
    return None if isinstance(epsilon, NUMBERS) else "its radius is no number"


COSTS = {"macs", "dense_macs", "macs_ratio", "params", "dense_params", "params_ratio"}
TRAINED = {"dataset", "data_dir", "epsilon", "defense", "method", "seed"}


def _is_share(trained: dict[str, Any]) -> bool:
    """Returns whether the fraction of held-out images is missing or valid."""
    share = trained.get("validation", 0.0)
    return isinstance(share, NUMBERS) and 0 <= share < 1


def _is_model(spec: dict[str, Any]) -> bool:
    """Returns whether a record describes a model of this package or of a user."""
    if "name" not in spec:
        return isinstance(spec.get("file", spec.get("class")), str)
    return is_ours(spec)


def is_ours(spec: Mapping[str, Any]) -> bool:
    """Returns whether a record names a model of this package.

    Only such models are ever built from a record.
    """
    name, width = spec.get("name"), spec.get("width")
    return (
        isinstance(name, str)
        and name in models.MODELS
        and isinstance(width, NUMBERS)
        and 0 < width <= 64
        and isinstance(spec.get("activation"), str)
        and spec["activation"] in models.ACTIVATIONS
    )


def _are_counts(values: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)


def _are_numbers(values: Any) -> bool:
    return all(isinstance(value, NUMBERS) for value in values)
