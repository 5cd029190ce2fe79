"""Saving and restoring a run, the only file that knows orbax.

A checkpoint holds three items: the network (weights, statistics, masks), what training needs
besides (step, optimiser; left out of a network that is handed on), and a JSON record: the run's
config, how the network was slimmed, and a SHA-256 of each array item. The record says how to
rebuild the network, and nothing in a checkpoint is executed: arrays are plain tensorstore arrays,
the record is JSON.
"""

import contextlib
import dataclasses
import errno
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from irp_jax import files
from irp_jax.errors import UserError

KEPT = 2
"""Checkpoints kept: the newest, and the one before in case the newest is damaged."""

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """One restored checkpoint.

    Attributes:
        epoch: epochs completed.
        network: {"weights", "batch_stats", "masks"}, NumPy arrays.
        training: what else training needs, in the structure given; None if not asked for.
        record: the JSON record.
    """

    epoch: int
    network: dict[str, Any]
    training: Any
    record: dict[str, Any]


def save(folder: Path, epoch: int, network: Any, training: Any, record: dict[str, Any]) -> None:
    """Writes a checkpoint, wholly or not at all, then removes those beyond the newest `KEPT`.

    Args:
        folder: the run's checkpoint folder.
        epoch: epochs completed; later than those of all checkpoints there.
        network: {"weights", "batch_stats", "masks"}.
        training: any pytree of arrays; None leaves the item out: a network that is trained.
        record: JSON-able.

    Raises:
        UserError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    network, training = jax.tree.map(np.asarray, (network, training))
    record = {**record, "sha256": {"network": digest(network), "training": digest(training)}}
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
                raise OSError("it was refused")
    except Exception as error:  # tensorstore reports a full disk in exceptions of its own
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
    """The newest good checkpoint in a run's checkpoint folder, or one given by its own path.

    Args:
        path: a folder of checkpoints, or one checkpoint in it.
        make_training: (network, record) -> a pytree with the structure and shapes of the `training`
            item; may refuse the checkpoint with a UserError. None skips the item.
        log: told, in one line, of every damaged checkpoint that is passed over.
        discard: whether unfinished ones are removed, and damaged ones newer than the one returned,
            so that a run can write them anew. Where none can be read all stay: what cannot be read
            here another version of a library may still read.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    # A run or any other folder may be called 5, too.
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
            except UserError:  # of `make_training`: whole, but not what is wanted
                raise
            except Exception as error:  # a damaged file can break any layer below
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
            "installed: give another one, or the folder it lies in"
        )
    if candidates:
        raise UserError(
            f"every checkpoint in {folder} is damaged, or of other versions of jax, optax or orbax "
            "than are installed: remove the folder to train anew, or fetch the network anew"
        )
    return None


def _read(manager: ocp.CheckpointManager, epoch: int, make_training: Callable | None) -> Saved:
    record = manager.restore(epoch, args=ocp.args.Composite(record=ocp.args.JsonRestore()))[
        "record"
    ]
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
    restore = ocp.args.StandardRestore(example)
    tree = manager.restore(epoch, args=ocp.args.Composite(**{name: restore}))[name]
    return jax.tree.map(np.asarray, tree)


@contextlib.contextmanager
def _manager(folder: Path) -> Iterator[ocp.CheckpointManager]:
    # Saving in the foreground: a run that is killed right after an epoch has that epoch.
    with (
        _plain_path(folder.absolute()) as place,
        ocp.CheckpointManager(
            place,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT, create=True, enable_async_checkpointing=False
            ),
            item_names=("network", "training", "record"),
        ) as manager,
    ):
        yield manager


@contextlib.contextmanager
def _plain_path(folder: Path) -> Iterator[Path]:
    """A path to an existing folder that orbax reads as it is.

    Orbax takes its own path for a pattern of `glob`, and tensorstore a backslash for a slash: under
    a folder called a[1] a checkpoint would seem to be saved, and could not be read.
    """
    if re.fullmatch(r"[\w./ -]*", str(folder), re.ASCII):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="irp_jax-") as temporary:
        link = Path(temporary, "checkpoints")
        link.symlink_to(folder, target_is_directory=True)
        yield link


def digest(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of a tree's arrays, wherever they lie."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        total.update(f"{name} {array.dtype} {np.shape(leaf)}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _check_space(folder: Path, trees: Any) -> None:
    """Refuses a save that would not fit: orbax is noisy about a disk that fills under its hands."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = 1.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + 2**20
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free")


def _discard_unfinished(folder: Path) -> None:
    for path in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)


def _first_line(error: Exception) -> str:
    said = getattr(error, "strerror", None) or error
    text = str(said).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def quiet() -> None:
    """Keeps orbax's own log lines, several per checkpoint, out of the user's terminal."""
    logging.getLogger("absl").setLevel(logging.ERROR)
