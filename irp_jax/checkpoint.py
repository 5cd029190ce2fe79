"""Saves and restores runs. Only this file uses orbax.

A checkpoint holds three items:

- `network`: weights, batch statistics and masks;
- `training`: the rest of the training state, such as step and optimiser; it can be left out;
- `record`: JSON with the config of the run, how the network was compacted, and a SHA-256 of each
  array item and of itself. The network is rebuilt from it.

Nothing in a checkpoint is executed: arrays are plain tensorstore arrays, and the record is JSON.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from irp_jax import files, hosts
from irp_jax.errors import UserError, extra

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

KEPT = 2
"""Number of checkpoints kept: the newest, and the one before it in case the newest is damaged."""

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """One restored checkpoint.

    Attributes:
        epoch: epochs completed.
        network: {"weights", "batch_stats", "masks"}, NumPy arrays.
        training: the `training` item, in the structure given to `restore`; None if not requested.
        record: the JSON record.
    """

    epoch: int
    network: dict[str, Any]
    training: Any
    record: dict[str, Any]


def _orbax() -> ModuleType:
    """Imports orbax on first use, because saved networks are loaded without it."""
    with extra("train"):
        import orbax.checkpoint
    return orbax.checkpoint


@hosts.by_first
def save(folder: Path, epoch: int, network: Any, training: Any, record: dict[str, Any]) -> None:
    """Writes a checkpoint completely or not at all, then removes all but the newest `KEPT`.

    Args:
        folder: the run's checkpoint folder.
        epoch: epochs completed; must be greater than those of all checkpoints in the folder.
        network: {"weights", "batch_stats", "masks"}.
        training: any pytree of arrays; None leaves the item out.
        record: any value that can be written as JSON.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are not changed.
    """
    ocp = _orbax()
    network, training = jax.tree.map(np.asarray, (network, training))
    sums = {"network": digest(network), "training": digest(training)}
    record = {**record, "sha256": {**sums, "record": _digest_of_record(record)}}
    items = {
        "network": ocp.args.StandardSave(network),
        "record": ocp.args.JsonSave(record),
    }
    if training is not None:
        items["training"] = ocp.args.StandardSave(jax.tree.leaves(training))
    try:
        _check_space(folder, (network, training))
        with _manager(folder) as manager:
            written = manager.save(epoch, force=True, args=ocp.args.Composite(**items))
            manager.wait_until_finished()
            if not written:
                raise OSError("orbax refused it")
    except Exception as error:  # tensorstore reports a full disk by exceptions of its own
        _discard_unfinished(folder)
        advice = "free some space" if files.is_full(error) else "make it writable"
        raise UserError(
            f"cannot write a checkpoint to {folder} ({_first_line(error)}): {advice} "
            "(or choose another --workdir) and run the same command again to resume"
        ) from error


def restore(
    path: Path,
    make_training: Callable[[dict[str, Any], dict[str, Any]], Any] | None,
    log: Log,
    *,
    discard: bool = False,
) -> Saved | None:
    """Returns the newest undamaged checkpoint of a checkpoint folder, or one given by its own path.

    Args:
        path: a folder of checkpoints, or one checkpoint in it.
        make_training: (network, record) -> a pytree with the structure and shapes of the `training`
            item; may refuse the checkpoint by raising a UserError. None skips the item.
        log: called with one line for each damaged checkpoint that is skipped.
        discard: whether to remove unfinished checkpoints, and damaged ones that are newer than the
            one returned, so that a run can write them again. If none can be read, the damaged ones
            are kept, because other versions of the libraries may be able to read them.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    # A workdir may have a number as its name, too, so the content is checked.
    named = path.name.isdecimal() and (path / "record").is_dir()
    folder, only = (path.parent, int(path.name)) if named else (path, None)
    if not folder.is_dir():
        return None
    if discard:
        _discard_unfinished(folder)
    with _manager(folder) as manager:
        epochs = sorted(manager.all_steps(), reverse=True)
        candidates = epochs if only is None else [e for e in epochs if e == only]
        damaged: list[int] = []
        for epoch in candidates:
            try:
                saved = _read(manager, epoch, make_training)
            except UserError:  # `make_training` refused it: it is not damaged
                raise
            except Exception as error:  # any library below may fail on a damaged file
                damage = f"checkpoint {folder / str(epoch)} is damaged ({_first_line(error)})"
                log(f"{damage}: trying an older one" if epoch != candidates[-1] else damage)
                damaged.append(epoch)
                continue
            for newer in damaged if discard else ():
                manager.delete(newer)
            return saved
    if only is not None and damaged:
        raise UserError(
            f"checkpoint {path} is damaged, or of other versions of jax, optax or orbax than are "
            "installed: give another one, or its folder"
        )
    if candidates:
        raise UserError(
            f"every checkpoint in {folder} is damaged, or of other versions of jax, optax or orbax "
            "than are installed: remove the folder to train anew, or fetch the network again"
        )
    return None


def _read(manager: "ocp.CheckpointManager", epoch: int, make_training: Callable | None) -> Saved:
    ocp = _orbax()
    record = manager.restore(epoch, args=ocp.args.Composite(record=ocp.args.JsonRestore()))[
        "record"
    ]
    if record["sha256"].get("record", _digest_of_record(record)) != _digest_of_record(record):
        raise ValueError("the record's checksum differs")  # records of older versions have none
    network = _read_item(manager, epoch, "network", None)
    if digest(network) != record["sha256"]["network"]:
        raise ValueError("the network's checksum differs")
    training = None
    if make_training is not None:
        example = make_training(network, record)
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, example))
        found = _read_item(manager, epoch, "training", leaves)
        training = jax.tree.unflatten(structure, found)
        if digest(training) != record["sha256"]["training"]:
            raise ValueError("the optimiser's checksum differs")
    return Saved(epoch=epoch, network=network, training=training, record=record)


def _read_item(manager, epoch, name, example):
    _check_readable(Path(manager.directory, str(epoch), name))
    ocp = _orbax()
    restore = ocp.args.StandardRestore(example)
    tree = manager.restore(epoch, args=ocp.args.Composite(**{name: restore}))[name]
    return jax.tree.map(np.asarray, tree)


def _check_readable(item: Path) -> None:
    """Raises an error of tensorstore if a file of an item is damaged.

    Orbax would find it, too. But it reads arrays at the same time, and if one fails, the others
    print tracebacks that cannot be caught.
    """
    import tensorstore

    if not (item / "manifest.ocdbt").exists():
        return  # orbax says what is missing
    files_of_item = {"driver": "file", "path": f"{item}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": files_of_item}).result()
    for key in store.list().result():
        store.read(key).result()


@contextlib.contextmanager
def _manager(folder: Path) -> "Iterator[ocp.CheckpointManager]":
    ocp = _orbax()
    me = jax.process_index()
    # Otherwise orbax would wait for all processes of a run of several.
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    # Saving is synchronous, so that an epoch is not lost if the run is killed right after it.
    with (
        _plain_path(folder.absolute()) as place,
        ocp.CheckpointManager(
            place,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
            ),
            item_names=("network", "training", "record"),
        ) as manager,
    ):
        yield manager


@contextlib.contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """Yields a path to an existing folder that orbax and tensorstore do not misread.

    Orbax uses the path as a pattern of `glob`, and tensorstore reads a backslash as a slash. A
    checkpoint in a folder called a[1] would be saved, but could not be read. Such a folder is
    reached through a temporary symbolic link.
    """
    if re.fullmatch(r"[\w./ -]*", str(folder), re.ASCII):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="irp_jax-") as temporary:
        link = Path(temporary, "checkpoints")
        link.symlink_to(folder, target_is_directory=True)
        yield link


def digest(tree: Any) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and bytes of a tree's arrays, on any device."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        total.update(f"{name} {array.dtype} {np.shape(leaf)}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _digest_of_record(record: dict[str, Any]) -> str:
    """Returns the SHA-256 of a record without the digests in it."""
    content = {key: value for key, value in files.as_json(record).items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_space(folder: Path, trees: Any) -> None:
    """Raises OSError if the disk, a quota or a limit on file sizes leaves too little space.

    Orbax prints many lines if it cannot write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = int(1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + 2**20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free")
    if hasattr(os, "posix_fallocate"):  # Linux
        with tempfile.TemporaryFile(dir=folder) as trial:
            os.posix_fallocate(trial.fileno(), 0, needed)


def _discard_unfinished(folder: Path) -> None:
    for path in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def _first_line(error: Exception) -> str:
    said = getattr(error, "strerror", None) or error
    text = str(said).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def quiet() -> None:
    """Silences the log lines of orbax: several per checkpoint, and more if one is damaged."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
