"""How far a run has come: starting, resuming, saving."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from irp_jax import checkpoint, files
from irp_jax.config import Config
from irp_jax.data import Dataset
from irp_jax.models import Architecture
from irp_jax.network import deployed
from irp_jax.pruning import slim
from irp_jax.training import phases
from irp_jax.training.phases import Plan
from irp_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What stays the same for the whole run."""

    config: Config
    plan: Plan
    dataset: Dataset
    dense: Architecture
    network: Callable
    apply: Callable
    mesh: Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come: epochs completed, units kept once frozen (else empty), seconds of
    training, and the state."""

    epoch: int
    kept: dict[str, int]
    seconds: float
    state: TrainState


def start(setup: Setup, model: Any) -> Progress:
    """The beginning of a run: the network initialised from its seed."""

    @jax.jit
    def init(key: jax.Array) -> TrainState:
        image = jnp.zeros((1, *setup.dataset.image_shape), jnp.float32)
        variables = model.init(key, image, train=False)
        return phases.initial_state(setup.config, setup.plan, setup.dense, variables)

    return Progress(epoch=0, kept={}, seconds=0.0, state=init(jax.random.key(setup.config.seed)))


def resume(setup: Setup, workdir: Path, log: checkpoint.Log) -> Progress | None:
    """Where the run in `workdir` left off, by its newest good checkpoint; None if it has none.

    The log of epochs is cut back to that point.
    """

    def make_training(network: dict[str, Any], record: dict[str, Any]) -> Any:
        frozen = bool(record["kept"])
        architecture = architecture_now(setup, record["kept"])
        state = phases.example_state(setup.config, setup.plan, architecture, network, frozen)
        return {"step": state.step, "optimizer": state.optimizer}

    saved = checkpoint.restore(workdir / "checkpoints", make_training, log)
    files.truncate_log(workdir / "metrics.jsonl", saved.epoch if saved else 0)
    if saved is None:
        return None
    log(f"resuming after epoch {saved.epoch}")
    params = {"weights": saved.network["weights"], "masks": saved.network["masks"]}
    state = TrainState(
        saved.training["step"], params, saved.network["batch_stats"], saved.training["optimizer"]
    )
    record = saved.record
    return Progress(epoch=saved.epoch, kept=record["kept"], seconds=record["seconds"], state=state)


def save(setup: Setup, progress: Progress, workdir: Path) -> None:
    """Writes a checkpoint."""
    state = progress.state
    network = {
        "weights": state.params["weights"],
        "masks": state.params["masks"],
        "batch_stats": state.batch_stats,
    }
    if progress.kept:
        # What a frozen mask hides has no effect any more; as zeros the network says what it is.
        shipped = deployed(architecture_now(setup, progress.kept), state.params, state.batch_stats)
        network["weights"] = shipped["params"]
    record = {
        "config": dataclasses.asdict(setup.config),
        "class_names": list(setup.dataset.class_names),
        "image_shape": list(setup.dataset.image_shape),
        "kept": progress.kept,
        "seconds": progress.seconds,
    }
    training = {"step": state.step, "optimizer": state.optimizer}
    checkpoint.save(workdir / "checkpoints", progress.epoch, network, training, record)


def architecture_now(setup: Setup, kept: dict[str, int]) -> Architecture:
    """The architecture as it is now: cut once channels are frozen."""
    if kept and setup.config.regularity == "channel":
        return slim.architecture(setup.dense, kept)
    return setup.dense
