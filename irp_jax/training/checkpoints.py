"""The checkpoints of a run: saves its progress after an epoch, and resumes from it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from irp_jax import checkpoint, files, hosts, prng
from irp_jax.errors import UserError
from irp_jax.graph import ChannelGraph
from irp_jax.inference.function import network_params
from irp_jax.inference.record import quantization_of
from irp_jax.pruning import sparse
from irp_jax.quantization import Quantization
from irp_jax.training import defenses
from irp_jax.training.defenses import Choice
from irp_jax.training.divergence import LossRecord
from irp_jax.training.overfitting import AccuracyRecord
from irp_jax.training.progress import Progress, Setup, memory_of
from irp_jax.training.state import TrainState, example_state

CHECKPOINTS = "checkpoints"
"""Folder in the workdir. Each checkpoint is of the end of an epoch."""

ENTRIES = {
    "identity", "network", "keep_counts", "seconds", "defense", "passes", "images", "rollbacks",
    "health", "clip", "descent", "parent",
}  # fmt: skip
"""Keys of the record that `save` writes."""


def resume(setup: Setup, workdir: Path, log: checkpoint.Log) -> Progress | None:
    """Restores the newest good checkpoint in `workdir`. Returns None if there is none.

    The log of epochs is truncated to the same epoch.

    Raises:
        UserError: the checkpoints are of another run, version or network.
    """

    def make_training(network: dict[str, Any], record: dict[str, Any]) -> Any:
        of_now = {"health": set(AccuracyRecord._fields), "descent": set(LossRecord._fields)}
        if ENTRIES - set(record) or any(set(record[k]) != of_now[k] for k in of_now):
            raise UserError(
                f"{workdir} holds checkpoints of another version: choose another --workdir"
            )
        if record["identity"] != setup.identity:
            raise UserError(f"{workdir} holds checkpoints of another run: choose another --workdir")
        if record["network"]["groups"] != dict(setup.graph.groups):
            raise UserError(
                f"{workdir} holds checkpoints of a network with other layers: choose another "
                f"--workdir"
            )
        frozen, dense = bool(record["keep_counts"]), None
        if record["parent"]:
            dense = _example_parent(setup)
        network = network_params(setup.graph, network) | {"batch_stats": network["batch_stats"]}
        state = example_state(setup.config, setup.plan, setup.graph, network, frozen)
        defense = defenses.build(Choice(*record["defense"]), setup.config)
        memory = jax.eval_shape(lambda key: memory_of(setup, defense, key), prng.key(0))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), memory)
        return training_arrays(dataclasses.replace(state, memory=zeros), dense)

    saved = restored(workdir / CHECKPOINTS, make_training, log)
    files.truncate_log(workdir / "metrics.jsonl", saved.epoch if saved else 0)
    if saved is None:
        return None
    log(f"resuming after epoch {saved.epoch}")
    record = saved.record
    return Progress(
        epoch=saved.epoch,
        keep_counts=record["keep_counts"],
        seconds=record["seconds"],
        state=state_of(setup.graph, saved.network, saved.training),
        defense=Choice(*record["defense"]),
        passes=record["passes"],
        images=record["images"],
        rollbacks=tuple(record["rollbacks"]),
        accuracy_record=AccuracyRecord(**record["health"]),
        clip=record["clip"],
        loss_record=LossRecord(**record["descent"]),
        parent=saved.training["parent"],
        quantization=quantization_of(record["network"]),
    )


def restored(
    folder: Path,
    make_training: Callable[[dict[str, Any], dict[str, Any]], Any],
    log: checkpoint.Log,
    *,
    required: bool = True,
) -> checkpoint.Saved | None:
    """Restores the newest good checkpoint of a folder, the same one in all processes.

    Args:
        folder, make_training, log: as for `checkpoint.restore`.
        required: whether it is an error if all checkpoints of the folder are damaged, or if
            `make_training` refuses the newest. If not, None is returned.

    Raises:
        UserError: see `checkpoint.restore`; or not all processes find it.
    """
    saved = None
    if hosts.is_first():
        try:
            saved = checkpoint.restore(folder, make_training, log, discard=True)
        except UserError:
            if required:
                raise
    number = hosts.agreed(saved and saved.epoch)
    if number is not None and not hosts.is_first():
        saved = checkpoint.restore(folder / str(number), make_training, log)
        if saved is None:
            raise UserError(
                f"{folder / str(number)} is not found by all processes: give a --workdir in a file "
                f"system that all hosts share"
            )
    return saved


def state_of(graph: ChannelGraph, network: dict[str, Any], training: dict[str, Any]) -> TrainState:
    """Returns the state whose arrays a checkpoint holds.

    Args:
        graph: of the dense network.
        network, training: the items of the checkpoint.
    """
    params = network_params(graph, network)
    saved = {"weights": params["weights"], "batch_stats": network["batch_stats"]}
    live = training["live"] or saved
    return TrainState(
        step=training["step"],
        params={"weights": live["weights"], "masks": params["masks"]},
        batch_stats=live["batch_stats"],
        optimizer=training["optimizer"],
        average=training["live"] and saved,
        memory=training["memory"],
    )


def save(setup: Setup, progress: Progress, workdir: Path) -> None:
    """Writes a checkpoint."""
    network = jax.device_get(progress.state.network)
    if progress.keep_counts and network["masks"]:
        weights = sparse.pack(network["weights"], network["masks"])
        network = {**network, "weights": weights, "masks": {}}
    record = {
        "identity": setup.identity,
        "network": network_record(setup, progress.keep_counts, progress.quantization),
        "keep_counts": progress.keep_counts,
        "seconds": progress.seconds,
        "defense": list(progress.defense),
        "passes": progress.passes,
        "images": progress.images,
        "rollbacks": list(progress.rollbacks),
        "health": progress.accuracy_record._asdict(),
        "clip": progress.clip,
        "descent": progress.loss_record._asdict(),
        "parent": progress.parent is not None,
    }
    training = training_arrays(progress.state, progress.parent)
    checkpoint.save(workdir / CHECKPOINTS, progress.epoch, network, training, record)


def network_record(
    setup: Setup, keep_counts: dict[str, int], quantization: Quantization | None = None
) -> dict[str, Any]:
    """Returns the record that is needed to use the network."""
    config = setup.config
    rounded = {} if quantization is None else {"quantization": quantization.record()}
    return {
        **rounded,
        "model": setup.model.spec,
        "class_names": list(setup.dataset.class_names),
        "image_shape": list(setup.dataset.image_shape),
        "groups": dict(setup.graph.groups),
        "fingerprint": setup.graph.fingerprint,
        "keep_counts": keep_counts,
        "granularity": config.granularity,
        "multiple": setup.multiple,
        "trained": {
            "dataset": config.dataset,
            "data_dir": config.data_dir,
            "epsilon": config.epsilon,
            "defense": config.defense,
            "method": config.method,
            "validation": config.validation,
            "held_out": setup.held_out,
            "tested": setup.tested,
            "seed": config.seed,
        },
    }


def _example_parent(setup: Setup) -> dict[str, Any]:
    """Returns zeros with the structure and the shapes of a parent."""
    params, state = jax.eval_shape(setup.model.init, prng.key(0))
    shapes = {"params": params, "batch_stats": state}
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def training_arrays(state: TrainState, parent: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns what a checkpoint holds besides the network: None stands for nothing."""
    live = {"weights": state.params["weights"], "batch_stats": state.batch_stats}
    return {
        "step": state.step,
        "optimizer": state.optimizer,
        "live": None if state.average is None else live,
        "memory": state.memory,
        "parent": parent,
    }
