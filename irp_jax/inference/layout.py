"""Writes and reads the files of a saved network, which docs/saved_networks.md describes.

The names of the files are those of the Hugging Face hub. Only this file uses safetensors.

Nothing in the folder is executed as Python. Everything in it is checked before it is used: the
types in the record, the names, shapes and digest of the arrays, and the digest of the function.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from irp_jax import checkpoint, files, hosts, models
from irp_jax.errors import UserError

FORMAT = 4
"""Format of `config.json`. This version reads no other format."""

PUBLISHED = ("model.onnx", "model.tflite", "robustbench.json", "README.md")
"""Files that `publishing.publish` adds. They are about one network."""

RECORD, ARRAYS, FUNCTION = FILES = "config.json", "model.safetensors", "function.stablehlo"

FORMER = "network.json"
"""Name of the record in formats 1 to 3."""

KINDS = {"params": "params", "state": "batch_stats"}
"""First part of an array's name in `model.safetensors` -> its key in the variables of a network."""

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""Type in a safetensors file -> type of NumPy. `safetensors.numpy.load` reads no bfloat16."""

NUMBERS = (int, float)


def is_saved(folder: Path) -> bool:
    """Returns whether a folder holds a saved network, of this or of a former format."""
    return (folder / ARRAYS).is_file() or (folder / FORMER).is_file()


def place(folder: Path) -> Path:
    """Returns where the files of a folder are: elsewhere if its replacement was interrupted."""
    old = files.former(folder)
    return old if old.exists() and not folder.exists() else folder


def digest_in(folder: Path) -> str | None:
    """Returns `network_sha256` in the record of a folder; None if it holds no saved network."""
    try:
        record = files.read_json(folder / RECORD)
    except UserError:
        return None
    return record.get("network_sha256") if isinstance(record, dict) else None


def holds(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Returns whether a folder holds the network in these files, which `packed` returned."""
    if digest_in(folder) is None:
        return False
    here, there = files.read_json(folder / RECORD), json.loads(contents[RECORD])
    return all(here.get(key) == there.get(key) for key in ("network_sha256", "quantization"))


def packed(
    record: Mapping[str, Any],
    variables: Mapping[str, Mapping[str, Any]],
    function: bytes | None,
) -> dict[str, bytes]:
    """Returns the files of a saved network: name -> content.

    Args:
        record: the record of the network.
        variables: {"params", "batch_stats"}, each name -> array.
        function: the function of the network as StableHLO; None leaves it out.

    Raises:
        UserError: an array has a type that the files cannot hold.
    """
    arrays = {
        f"{kind}/{name}": np.ascontiguousarray(array).reshape(np.shape(array))
        for kind, place in KINDS.items()
        for name, array in variables[place].items()
    }
    for name, array in arrays.items():
        if array.dtype not in map(np.dtype, DTYPES.values()):
            raise UserError(f"{name} is of type {array.dtype}, which safetensors cannot hold")
    whole = {
        **record,
        "library_name": "irp_jax",
        "format": FORMAT,
        "network_sha256": checkpoint.digest(variables),
    }
    contents = {ARRAYS: safetensors.numpy.save(arrays)}
    if function is not None:
        contents[FUNCTION] = function
        whole["function_sha256"] = hashlib.sha256(function).hexdigest()
    contents[RECORD] = files.as_bytes(whole)
    return contents


@hosts.by_first
def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes the files of a saved network, all of them or none.

    Args:
        folder: the folder to make. One that holds a saved network is replaced; its other files
            are kept, except files of `PUBLISHED` that are about another network.
        contents: as `packed` returns them; more files may be among them.

    Raises:
        UserError: the folder cannot be written, or holds something other than a saved network.
    """
    foreign = folder.exists() and digest_in(folder) is None
    if foreign and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something else: move it away, or choose another")
    same = holds(place(folder), contents)
    stale = () if same and set(PUBLISHED).isdisjoint(contents) else PUBLISHED
    files.write_folder(folder, contents, dropped={*FILES, *stale})


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]], bytes | None]:
    """Reads a saved network.

    Returns:
        (record, variables, function) as given to `packed`. The function is None if there is none.

    Raises:
        UserError: the folder has another format, is damaged, or holds something else.
    """
    record = files.read_json(folder / RECORD)
    if record is None:
        raise UserError(
            f"{folder} has no {RECORD}: it is incomplete, or of an older version of irp_jax; fetch "
            f"the network again, or use the version that wrote it"
        )
    if isinstance(record, dict) and record.get("library_name") == "irp_jax":
        found = record.get("format")
        if found != FORMAT:
            raise UserError(
                f"{folder / RECORD} is of format {found}, and this version reads {FORMAT}: use the "
                f"version of irp_jax that wrote it"
            )
    fault = fault_in(record)
    if fault is not None:
        raise UserError(
            f"{folder / RECORD} is not the record of a network of irp_jax ({fault}): fetch the "
            f"network again"
        )
    variables = _variables(folder / ARRAYS)
    # These describe the files, not the network.
    about = {name: record.pop(name, None) for name in DESCRIBING}
    if checkpoint.digest(variables) != about["network_sha256"]:
        raise UserError(
            f"{folder / ARRAYS} is damaged or of another network: fetch the network again"
        )
    if about["function_sha256"] is None:
        return record, variables, None
    path = folder / FUNCTION
    if not path.is_file() or files.sha256(path) != about["function_sha256"]:
        raise UserError(f"{path} is damaged or missing: fetch the network again")
    return record, variables, path.read_bytes()


def _variables(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Reads `model.safetensors`."""
    variables: dict[str, dict[str, np.ndarray]] = {place: {} for place in KINDS.values()}
    try:
        for key, found in safetensors.deserialize(path.read_bytes()):
            kind, _, name = key.partition("/")
            array = np.ndarray(found["shape"], DTYPES[found["dtype"]], found["data"])
            variables[KINDS[kind]][name] = array
    except (OSError, KeyError, MemoryError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} is not what a saved network holds ({type(error).__name__}): fetch the network "
            f"again"
        ) from error
    return variables


DESCRIBING = ("library_name", "format", "network_sha256", "function_sha256")
"""Keys of `config.json` that say what the files are."""


def fault_in(record: Any) -> str | None:
    """Returns a text that says what is wrong with a record, or None if it is valid."""
    if not isinstance(record, dict):
        return "it is no JSON object"
    known: dict[str, Callable[[Any], Any]] = {
        "library_name": lambda v: v == "irp_jax",
        "format": lambda v: v == FORMAT,
        "model": lambda v: isinstance(v, dict) and _is_model(v),
        "class_names": lambda v: isinstance(v, list) and v and all(isinstance(n, str) for n in v),
        "image_shape": lambda v: isinstance(v, list) and len(v) == 3 and _are_counts(v),
        "groups": lambda v: isinstance(v, dict) and _are_counts(v.values()),
        "keep_counts": lambda v: isinstance(v, dict) and _are_counts(v.values()),
        "granularity": lambda v: v in ("channel", "weight"),
        "cost": lambda v: isinstance(v, dict) and not COSTS - set(v) and _are_numbers(v.values()),
        "epochs": lambda v: isinstance(v, int) and v >= 0,
        "trained": lambda v: isinstance(v, dict) and not TRAINED - set(v) and _is_training(v),
        "network_sha256": lambda v: isinstance(v, str),
    }
    for name, is_sound in known.items():
        if name not in record:
            return f"it has no {name}"
        if not is_sound(record[name]):
            return f"its {name} is invalid"
    for name, is_sound in OPTIONAL.items():
        if name in record and not is_sound(record[name]):
            return f"its {name} is invalid"
    return "its images are too large" if math.prod(record["image_shape"]) > 2**31 else None


COSTS = {"macs", "dense_macs", "macs_ratio", "params", "dense_params", "params_ratio"}
TRAINED = {"dataset", "data_dir", "epsilon", "defense", "method", "seed"}


OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "multiple": lambda v: _are_counts([v]),
    "history": lambda v: isinstance(v, list) and all(isinstance(row, dict) for row in v),
    "quantization": lambda v: isinstance(v, dict) and bool(v),
    "fingerprint": lambda v: isinstance(v, str),
}
"""Keys that a record may have, each with a check of its value."""


def _is_training(trained: dict[str, Any]) -> bool:
    """Returns whether the facts on training that the package uses are valid."""
    share, epsilon = trained.get("validation", 0.0), trained["epsilon"]
    return (
        isinstance(trained["dataset"], str)
        and isinstance(trained["data_dir"], str | None)
        and _are_numbers([share, epsilon])
        and 0 <= share < 1
        and 0 < epsilon <= 1
    )


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
    return all(isinstance(value, NUMBERS) and math.isfinite(value) for value in values)
