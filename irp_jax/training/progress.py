"""The progress of a run: starts, resumes and saves it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from irp_jax import checkpoint, draws, files, hosts
from irp_jax.config import Config
from irp_jax.data import Dataset
from irp_jax.errors import UserError
from irp_jax.graph import ChannelGraph
from irp_jax.network import Network
from irp_jax.pruning import sparse
from irp_jax.pruning.latency_table import MULTIPLE
from irp_jax.quantization import Quantization
from irp_jax.traced import TracedModel
from irp_jax.trained.inference import network_params
from irp_jax.trained.record import quantization_of
from irp_jax.training import defenses
from irp_jax.training.defenses import Choice
from irp_jax.training.divergence import LossRecord
from irp_jax.training.overfitting import AccuracyRecord
from irp_jax.training.plan import Plan
from irp_jax.training.state import TrainState, example_state, initial_state


class Reporter(Protocol):
    """Receives the messages and the progress of a run, such as `report.terminal.Terminal`."""

    def note(self, message: str) -> None: ...
    def begin(self, config: Config, plan: Plan, done: int) -> None: ...
    def progress(self, steps: int, images_per_s: float, metrics: dict[str, float]) -> None: ...
    def back_to(self, done: int) -> None: ...
    def epoch(self, row: dict[str, Any]) -> None: ...
    def attacking(self, name: str, robust: int) -> None: ...
    def evaluating(self, done: int, total: int, robust: int) -> None: ...
    def end(self, results: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a run that do not change.

    Attributes:
        config: of the run.
        identity: the settings and digests that decide the outcome, read at the start, because a
            user's file may change during the run.
        plan: of the run.
        dataset: on the host.
        model: the dense network.
        apply: (variables, images) -> logits, in inference mode.
        teacher: the saved network that teaches; None without one, and with a parent or the average.
        held_out: SHA-256 of the held-out images; empty if there are none.
        tested: SHA-256 of the test images.
        multiple: an exported file has zero channels up to multiples of this.
        mesh: the devices.
    """

    config: Config
    identity: dict[str, Any]
    plan: Plan
    dataset: Dataset
    model: TracedModel
    apply: Callable
    mesh: Mesh
    teacher: Network | None = None
    held_out: str = ""
    tested: str = ""
    multiple: int = MULTIPLE

    @property
    def graph(self) -> ChannelGraph:
        """The graph of the dense network."""
        return self.model.graph


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run: all that a checkpoint holds.

    Attributes:
        epoch: epochs completed.
        keep_counts: mask name -> units kept; empty before masks are frozen.
        seconds: time of the run so far, from loading the data on, without the time that a killed
            process spent after its last checkpoint.
        state: of training.
        defense: in use now.
        passes: pairs of a forward and a backward pass for each training image so far, without the
            guard's probes.
        images: images trained on so far, repeats and epochs undone by the guard included.
        rollbacks: one entry for each rollback, as in results.json: its cause and the changed
            setting.
        accuracy_record: the guard's record of accuracies under attack.
        clip: largest gradient norm now; 0 means no clipping.
        loss_record: the guard's record of the loss.
        parent: {"params", "batch_stats"} of the dense network that teaches, as `deployed` returns
            it; None before it teaches.
        quantization: the ranges of activations of the 8-bit network; None before it is trained so.
    """

    epoch: int
    keep_counts: dict[str, int]
    seconds: float
    state: TrainState
    defense: Choice
    passes: float
    images: int
    rollbacks: tuple[dict[str, Any], ...]
    accuracy_record: AccuracyRecord
    clip: float
    loss_record: LossRecord
    parent: dict[str, Any] | None = None
    quantization: Quantization | None = None

    def after(self, seconds: float) -> "Progress":
        """Returns the same progress with more time spent."""
        return dataclasses.replace(self, seconds=self.seconds + seconds)


def start(setup: Setup) -> Progress:
    """Returns the start of a run: the network with initial weights from its seed."""
    wanted = Choice(setup.config.defense, setup.config.attack_steps)

    @jax.jit
    def init(key: jax.Array) -> TrainState:
        params, batch_stats = setup.model.init(key)
        variables = {"params": params, "batch_stats": batch_stats}
        state = initial_state(setup.config, setup.plan, setup.graph, variables)
        return dataclasses.replace(
            state, memory=memory_of(setup, defenses.build(wanted, setup.config), key)
        )

    return Progress(
        epoch=0,
        keep_counts={},
        seconds=0.0,
        state=init(draws.key(setup.config.seed)),
        defense=wanted,
        passes=0.0,
        images=0,
        rollbacks=(),
        accuracy_record=AccuracyRecord(chance=1 / setup.dataset.num_classes),
        clip=setup.config.clip,
        loss_record=LossRecord.begin(
            setup.dataset.train.labels, setup.dataset.num_classes, setup.config.label_smoothing
        ),
    )


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
        memory = jax.eval_shape(lambda key: memory_of(setup, defense, key), draws.key(0))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), memory)
        return _training_arrays(dataclasses.replace(state, memory=zeros), dense)

    folder, saved = workdir / "checkpoints", None
    if hosts.is_first():
        saved = checkpoint.restore(folder, make_training, log, discard=True)
    epoch = hosts.agreed(saved and saved.epoch)
    if epoch is not None and not hosts.is_first():
        saved = checkpoint.restore(folder / str(epoch), make_training, log)
        if saved is None:
            raise UserError(
                f"{folder / str(epoch)} is not found by all processes: give a --workdir in a file "
                f"system that all hosts share"
            )
    files.truncate_log(workdir / "metrics.jsonl", saved.epoch if saved else 0)
    if saved is None:
        return None
    log(f"resuming after epoch {saved.epoch}")
    params, rest = network_params(setup.graph, saved.network), saved.training
    network = {"weights": params["weights"], "batch_stats": saved.network["batch_stats"]}
    live = rest["live"] or network
    state = TrainState(
        step=rest["step"],
        params={"weights": live["weights"], "masks": params["masks"]},
        batch_stats=live["batch_stats"],
        optimizer=rest["optimizer"],
        average=rest["live"] and network,
        memory=rest["memory"],
    )
    record = saved.record
    return Progress(
        epoch=saved.epoch,
        keep_counts=record["keep_counts"],
        seconds=record["seconds"],
        state=state,
        defense=Choice(*record["defense"]),
        passes=record["passes"],
        images=record["images"],
        rollbacks=tuple(record["rollbacks"]),
        accuracy_record=AccuracyRecord(**record["health"]),
        clip=record["clip"],
        loss_record=LossRecord(**record["descent"]),
        parent=rest["parent"],
        quantization=quantization_of(record["network"]),
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
    training = _training_arrays(progress.state, progress.parent)
    checkpoint.save(workdir / "checkpoints", progress.epoch, network, training, record)


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
    params, state = jax.eval_shape(setup.model.init, draws.key(0))
    shapes = {"params": params, "batch_stats": state}
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _training_arrays(state: TrainState, parent: dict[str, Any] | None) -> dict[str, Any]:
    """Returns what a checkpoint holds besides the network: None stands for nothing."""
    live = {"weights": state.params["weights"], "batch_stats": state.batch_stats}
    return {
        "step": state.step,
        "optimizer": state.optimizer,
        "live": None if state.average is None else live,
        "memory": state.memory,
        "parent": parent,
    }


def memory_of(setup: Setup, defense: defenses.Defense, key: jax.Array) -> Any:
    """Returns a defense's initial memory of the training images."""
    # No step has this number, so no other draw uses this key.
    own = jax.random.fold_in(key, 2**32 - 1)
    return defense.memory(own, len(setup.dataset.train), setup.dataset.image_shape)
