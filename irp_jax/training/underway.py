"""The epoch under way: it is saved after a segment, and goes on from there.

It is saved beside the checkpoint of the epoch's start, to which the guard may roll back. A run
resumes from that checkpoint first, repeats what changes between two epochs, and then takes the
state within the epoch.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import checkpoint, hosts
from irp_jax.errors import UserError
from irp_jax.training.checkpoints import restored, state_of, training_arrays
from irp_jax.training.overfitting import AccuracyRecord
from irp_jax.training.progress import Progress, Setup
from irp_jax.training.segments import Begun

FOLDER = "underway"
"""Folder in the workdir, in the format of the checkpoints."""


def save(setup: Setup, progress: Progress, begun: Begun, seconds: float, workdir: Path) -> bool:
    """Writes the epoch under way. Returns False if a metric is not finite, and writes nothing.

    Args:
        setup: of the run.
        progress: at the start of the epoch. Its checkpoint must be saved.
        begun: what was done of the epoch.
        seconds: time of the epoch so far.
        workdir: of the run.

    Raises:
        UserError: the disk is full or not writable.
    """
    metrics = jax.device_get([*begun.fetched, begun.pending])
    if not all(np.isfinite(values).all() for one in metrics for values in one.values()):
        return False  # the guard rolls back, or the run ends with an error
    record = {
        **_facts(setup, progress),
        "seconds": seconds,
        "accuracies": begun.record._asdict(),
        "metrics": [{name: values.tolist() for name, values in one.items()} for one in metrics],
    }
    number = progress.epoch * setup.plan.segments + begun.segments
    network, training = jax.device_get(begun.state.network), training_arrays(begun.state)
    checkpoint.save(workdir / FOLDER, number, network, training, record)
    return True


def restore(
    setup: Setup, progress: Progress, workdir: Path, log: checkpoint.Log
) -> tuple[Begun, float] | None:
    """Returns what was done of the epoch, and the time that it took; None if nothing is saved.

    What was saved of another epoch or run, or is damaged, is removed.

    Args:
        setup: of the run.
        progress: at the start of the epoch.
        workdir: of the run.
        log: called with one line if something was restored, or is damaged.
    """
    if not hosts.agreed((workdir / FOLDER).is_dir()):
        return None
    shapes = training_arrays(progress.state)
    example = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    facts = _facts(setup, progress)

    def make_training(network: dict[str, Any], record: dict[str, Any]) -> Any:
        if {key: record.get(key) for key in facts} != facts:
            raise UserError("of another epoch or run")
        return example

    saved = restored(workdir / FOLDER, make_training, log, required=False)
    if saved is None:
        discard(workdir)
        return None
    record = saved.record
    metrics = [
        {name: jnp.asarray(values, jnp.float32) for name, values in one.items()}
        for one in record["metrics"]
    ]
    begun = Begun(
        state_of(setup.graph, saved.network, saved.training),
        AccuracyRecord(**record["accuracies"]), tuple(metrics[:-1]), metrics[-1],
    )  # fmt: skip
    done = f"{begun.segments / setup.plan.segments:.0%}"
    log(f"going on within epoch {progress.epoch + 1}, of which {done} is done")
    return begun, record["seconds"]


def _facts(setup: Setup, progress: Progress) -> dict[str, Any]:
    """Returns what tells an epoch under way from another one."""
    return {
        "identity": setup.identity,
        "epoch": progress.epoch,
        "rollbacks": list(progress.rollbacks),
        "segments": [setup.plan.segments, setup.plan.steps_per_epoch],
        "entries": list(AccuracyRecord._fields),
    }


@hosts.by_first
def discard(workdir: Path) -> None:
    """Removes what was saved of an epoch under way.

    It is renamed first. If a file cannot be removed, it is then not taken for a later state.
    """
    removed = workdir / f".{FOLDER}-removed"
    shutil.rmtree(removed, ignore_errors=True)
    with contextlib.suppress(OSError):
        (workdir / FOLDER).rename(removed)
    for folder in (removed, workdir / FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
