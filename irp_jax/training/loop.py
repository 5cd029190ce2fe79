"""A run from its config to its results: load, train, freeze, train on, evaluate; resumable."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from irp_jax import attacks, checkpoint, data, evaluation, files, models, parallel
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.data import Dataset
from irp_jax.models import Architecture
from irp_jax.network import cost_report, deployed, inference
from irp_jax.pruning import cost, slim
from irp_jax.training import phases
from irp_jax.training.phases import Plan
from irp_jax.training.step import Recipe, TrainState, compile_steps

SEGMENT = 50
"""Steps per compiled call, at most: the progress bar moves between calls."""

PROBE_IMAGES = 256
"""Held-out images on which accuracies are followed during training."""


class Reporter(Protocol):
    """Whoever shows a run to the user."""

    def note(self, message: str) -> None: ...
    def begin(self, config: Config, plan: Plan, done: int) -> None: ...
    def progress(self, steps: int, images_per_s: float, metrics: dict[str, float]) -> None: ...
    def epoch(self, row: dict[str, Any]) -> None: ...
    def evaluating(self, done: int, total: int, standing: int) -> None: ...
    def end(self, results: dict[str, Any]) -> None: ...


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


def run(config: Config, reporter: Reporter, command: str) -> dict[str, Any]:
    """Trains, prunes, evaluates and saves.

    Args:
        config: what to do.
        reporter: is told how it goes.
        command: the user's command line, for results.json.

    Returns:
        What results.json holds.

    Raises:
        UserError: the run cannot be done as asked; nothing is written that was not complete.
    """
    configs.check(config)
    workdir = configs.workdir(config)
    dataset = data.load(
        config.dataset, data_dir=config.data_dir, validation_fraction=config.validation
    )
    model = models.build(config.model, dataset.num_classes, config.width)
    dense = models.describe(model, dataset.image_shape)
    plan = phases.plan(config, dense, len(dataset.train))
    network = models.forward(model)
    setup = Setup(
        config=config, plan=plan, dataset=dataset, dense=dense, network=network,
        apply=inference(network), mesh=parallel.mesh(parallel.usable_devices(config.batch_size)),
    )  # fmt: skip
    with files.claim(workdir, configs.identity(config)):
        finished = files.read_json(workdir / "results.json")
        if finished is not None:
            reporter.note(f"{workdir} is finished: showing its results")
            reporter.end(finished)
            return finished
        files.write_json(workdir / "config.json", dataclasses.asdict(config))
        reporter.note(f"run in {workdir}")
        progress = _resume(setup, workdir, reporter) or _start(setup, model)
        progress = _train(setup, progress, workdir, reporter)
        results = _evaluate(setup, progress, reporter) | {
            "environment": parallel.describe(),
            "command": command,
            "commit": files.commit(),
            "layers": cost.table(dense, progress.kept),
            "history": files.read_log(workdir / "metrics.jsonl"),
        }
        files.write_json(workdir / "results.json", results)
    reporter.end(results)
    return results


# ---- starting and resuming -------------------------------------------------------------------


def _start(setup: Setup, model: Any) -> Progress:
    @jax.jit
    def init(key: jax.Array) -> TrainState:
        image = jnp.zeros((1, *setup.dataset.image_shape), jnp.float32)
        variables = model.init(key, image, train=False)
        return phases.initial_state(setup.config, setup.plan, setup.dense, variables)

    return Progress(epoch=0, kept={}, seconds=0.0, state=init(jax.random.key(setup.config.seed)))


def _resume(setup: Setup, workdir: Path, reporter: Reporter) -> Progress | None:
    def make_training(network: dict[str, Any], record: dict[str, Any]) -> Any:
        frozen = bool(record["kept"])
        architecture = _architecture(setup, record["kept"])
        state = phases.example_state(setup.config, setup.plan, architecture, network, frozen)
        return {"step": state.step, "optimizer": state.optimizer}

    saved = checkpoint.restore(workdir / "checkpoints", make_training, reporter.note)
    files.truncate_log(workdir / "metrics.jsonl", saved.epoch if saved else 0)
    if saved is None:
        return None
    reporter.note(f"resuming after epoch {saved.epoch}")
    params = {"weights": saved.network["weights"], "masks": saved.network["masks"]}
    state = TrainState(
        saved.training["step"], params, saved.network["batch_stats"], saved.training["optimizer"]
    )
    record = saved.record
    return Progress(epoch=saved.epoch, kept=record["kept"], seconds=record["seconds"], state=state)


def _save(setup: Setup, progress: Progress, workdir: Path) -> None:
    state = progress.state
    network = {
        "weights": state.params["weights"],
        "masks": state.params["masks"],
        "batch_stats": state.batch_stats,
    }
    if progress.kept:
        # What a frozen mask hides has no effect any more; as zeros the network says what it is.
        shipped = deployed(_architecture(setup, progress.kept), state.params, state.batch_stats)
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


def _architecture(setup: Setup, kept: dict[str, int]) -> Architecture:
    """The architecture as it is now: cut once channels are frozen."""
    if kept and setup.config.regularity == "channel":
        return slim.architecture(setup.dense, kept)
    return setup.dense


# ---- training --------------------------------------------------------------------------------


def _train(setup: Setup, progress: Progress, workdir: Path, reporter: Reporter) -> Progress:
    """All epochs that are left; freezes on the way."""
    config, plan = setup.config, setup.plan
    whole = parallel.replicated(setup.mesh)
    train = setup.dataset.train
    images, labels = parallel.place((train.images, train.labels), whole)
    probe_images, probe_labels = _probe_set(setup)
    reporter.begin(config, plan, progress.epoch * plan.steps_per_epoch)
    key = parallel.place(jax.random.key(config.seed), whole)
    saved_at, steps = time.monotonic(), None
    state = parallel.place(progress.state, whole)
    while True:
        if progress.epoch >= plan.freeze_epoch and not progress.kept:
            frozen, kept = phases.freeze(config, plan, setup.dense, state)
            state, steps = parallel.place(frozen, whole), None
            progress = dataclasses.replace(progress, kept=kept, state=state)
            reporter.note(_frozen_note(setup, kept))
            saved_at = -float("inf")
        if progress.epoch == plan.epochs:
            break
        if steps is None:
            architecture = _architecture(setup, progress.kept)
            optimizer = phases.optimizer(config, plan, architecture, frozen=bool(progress.kept))
            steps = compile_steps(
                _recipe(setup, architecture), setup.network, optimizer, setup.mesh
            )
        began = time.monotonic()
        rows = []
        for batches in _segments(config, plan, len(train), progress.epoch):
            sent = time.monotonic()
            state, metrics = steps(state, key, images, labels, batches)
            metrics = jax.device_get(metrics)
            rows.append(metrics)
            rate = len(batches) * config.batch_size / (time.monotonic() - sent)
            latest = {name: float(values[-1]) for name, values in metrics.items()}
            reporter.progress(len(batches), rate, latest)
        seconds = time.monotonic() - began
        variables = deployed(architecture, state.params, state.batch_stats)
        accuracies = evaluation.probe(
            setup.apply, variables, probe_images, probe_labels, attacks.linf(config.epsilon),
            key=key,
        )  # fmt: skip
        progress = dataclasses.replace(
            progress, epoch=progress.epoch + 1, seconds=progress.seconds + seconds, state=state
        )
        done = sum(len(row["loss"]) for row in rows) * config.batch_size
        row = _row(setup, progress, rows, accuracies, done / seconds)
        files.append_log(workdir / "metrics.jsonl", row)
        reporter.epoch(row)
        if time.monotonic() - saved_at > config.checkpoint_every:
            _save(setup, progress, workdir)
            saved_at = time.monotonic()
    _save(setup, progress, workdir)
    return progress


def _recipe(setup: Setup, architecture: Architecture) -> Recipe:
    config = setup.config
    augmentation = data.default_augmentation(config.dataset, setup.dataset.image_shape)
    return Recipe(
        architecture=architecture,
        cost_kind="params" if config.cost == "params" else "macs",
        threat=attacks.linf(config.epsilon),
        attack=attacks.FAST_ATTACKS[config.attack],
        augmentation=dataclasses.replace(augmentation, cutout=config.cutout),
        label_smoothing=config.label_smoothing,
    )


def _segments(config: Config, plan: Plan, images: int, epoch: int) -> Iterator[np.ndarray]:
    """The epoch's batches of image indices, (steps, batch) int32, in runs of equal length.

    Equal, so that one program serves all; the few batches that do not fill a run are left to
    other epochs, as is the last, incomplete batch.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(images).astype(np.int32)
    runs = -(-plan.steps_per_epoch // SEGMENT)
    length = plan.steps_per_epoch // runs
    used = order[: runs * length * config.batch_size]
    yield from used.reshape(runs, length, config.batch_size)


def _probe_set(setup: Setup) -> Any:
    """Held-out images, split over the devices; training images where none are held out."""
    split = setup.dataset.validation if len(setup.dataset.validation) else setup.dataset.train
    devices = setup.mesh.size
    count = max(devices, min(PROBE_IMAGES, len(split)) // devices * devices)
    arrays = (split.images[:count], split.labels[:count])
    return parallel.place(arrays, parallel.batch(setup.mesh))


def _row(
    setup: Setup, progress: Progress, rows: list, accuracies: evaluation.Probe, rate: float
) -> dict[str, Any]:
    kept = progress.kept
    ratio = float(rows[-1]["cost_ratio"][-1])
    if kept:
        ratio = cost_report(setup.dense, kept)[f"{setup.config.cost}_ratio"]
    return {
        "epoch": progress.epoch,
        "loss": float(np.mean([row["loss"].mean() for row in rows])),
        "train_fgsm": float(np.mean([row["fgsm_accuracy"].mean() for row in rows])),
        "natural": float(accuracies.natural),
        "fgsm": float(accuracies.fgsm),
        "pgd": float(accuracies.pgd),
        "cost_ratio": ratio,
        "frozen": bool(kept),
        "images_per_s": round(rate, 1),
        "seconds": round(progress.seconds, 2),
    }


def _frozen_note(setup: Setup, kept: dict[str, int]) -> str:
    report = cost_report(setup.dense, kept)
    return (
        f"masks frozen: {report['macs'] / 1e6:.2f}M of {report['dense_macs'] / 1e6:.2f}M MACs "
        f"({report['macs_ratio']:.1%}), "
        f"{report['params']:,} of {report['dense_params']:,} parameters"
    )


# ---- the final number ------------------------------------------------------------------------


def _evaluate(setup: Setup, progress: Progress, reporter: Reporter) -> dict[str, Any]:
    """Natural and PGD accuracy of the deployed network on the test split, and the run's facts."""
    config, state = setup.config, progress.state
    spec = evaluation.AttackSpec(epsilon=config.epsilon)
    variables = deployed(_architecture(setup, progress.kept), state.params, state.batch_stats)
    report = evaluation.evaluate(
        setup.apply, variables, setup.dataset.test.images, setup.dataset.test.labels, spec,
        batch_size=256 * setup.mesh.size, mesh=setup.mesh, progress=reporter.evaluating,
    )  # fmt: skip
    plan = setup.plan
    trained = plan.epochs * plan.steps_per_epoch * config.batch_size
    return {
        "model": config.model,
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "budget": {
            "kind": config.cost,
            "target": plan.limit if config.budget[-1] in "kMG" else plan.ratio,
        },
        "cost": cost_report(setup.dense, progress.kept),
        "accuracy": {"natural": report.natural, "pgd": report.robust},
        "attack": spec.describe() | {"images": report.images},
        "epochs": plan.epochs,
        "wall_time_s": round(progress.seconds, 1),
        "images_per_s": round(trained / progress.seconds, 1),
        "config": configs.identity(config),
        "kept": progress.kept,
    }
