"""How far a run has come: starting, resuming, saving."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from irp_jax import checkpoint, files
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.data import Dataset
from irp_jax.errors import UserError
from irp_jax.models import Architecture
from irp_jax.network import network_params
from irp_jax.pruning import slim, sparse
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
    """How far a run has come.

    Attributes:
        epoch: epochs completed.
        kept: mask name -> units kept once masks are frozen, empty before.
        seconds: of training.
        state: to go on from.
    """

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
        if record["identity"] != configs.identity(setup.config):
            raise UserError(f"{workdir} holds checkpoints of another run: choose another --workdir")
        frozen = bool(record["kept"])
        architecture = architecture_now(setup, record["kept"])
        network = network_params(setup.dense, network) | {"batch_stats": network["batch_stats"]}
        state = phases.example_state(setup.config, setup.plan, architecture, network, frozen)
        return {"step": state.step, "optimizer": state.optimizer}

    saved = checkpoint.restore(workdir / "checkpoints", make_training, log, discard=True)
    files.truncate_log(workdir / "metrics.jsonl", saved.epoch if saved else 0)
    if saved is None:
        return None
    log(f"resuming after epoch {saved.epoch}")
    params = network_params(setup.dense, saved.network)
    state = TrainState(
        saved.training["step"], params, saved.network["batch_stats"], saved.training["optimizer"]
    )
    record = saved.record
    return Progress(epoch=saved.epoch, kept=record["kept"], seconds=record["seconds"], state=state)


def save(setup: Setup, progress: Progress, workdir: Path) -> None:
    """Writes a checkpoint."""
    state = progress.state
    params = jax.device_get(state.params)
    if progress.kept and params["masks"]:
        weights = sparse.pack(setup.dense, params["weights"], params["masks"])
        params = {"weights": weights, "masks": {}}
    network = {**params, "batch_stats": state.batch_stats}
    record = {
        "config": dataclasses.asdict(setup.config),
        "identity": configs.identity(setup.config),
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
