"""A run from its config to its results: load, train, freeze, train on, evaluate; resumable."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from irp_jax import attacks, data, evaluation, files, models, parallel
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.models import Architecture
from irp_jax.network import cost_report, deployed, inference
from irp_jax.pruning import cost
from irp_jax.training import phases
from irp_jax.training.phases import Plan
from irp_jax.training.progress import Progress, Setup, architecture_now, resume, save, start
from irp_jax.training.step import Metrics, Recipe, TrainState, compile_steps

PROBE_IMAGES = 256
"""Held-out images on which accuracies are followed during training."""


class Reporter(Protocol):
    """Whoever shows a run to the user."""

    def note(self, message: str) -> None: ...
    def begin(self, config: Config, plan: Plan, done: int) -> None: ...
    def progress(self, steps: int, images_per_s: float, metrics: dict[str, float]) -> None: ...
    def epoch(self, row: dict[str, Any]) -> None: ...
    def attacking(self, name: str, standing: int) -> None: ...
    def evaluating(self, done: int, total: int, standing: int) -> None: ...
    def end(self, results: dict[str, Any]) -> None: ...


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
    config = dataclasses.replace(config, budget=str(config.budget))
    configs.check(config)
    if jax.process_count() > 1:
        raise UserError("training runs on the devices of one host: start it on one host alone")
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
    commit = files.commit()  # now: the files may change while this process runs on
    with files.claim(workdir, configs.identity(config)):
        finished = files.read_json(workdir / "results.json")
        if finished is not None:
            reporter.note(f"{workdir} is finished: showing its results")
            reporter.end(finished)
            return finished
        everything = dataclasses.asdict(config) | configs.identity(config)
        files.write_json(workdir / "config.json", everything)
        reporter.note(f"run in {workdir}")
        progress = resume(setup, workdir, reporter.note) or start(setup, model)
        progress = _train(setup, progress, workdir, reporter)
        results = _evaluate(setup, progress, reporter) | {
            "environment": parallel.describe(),
            "command": command,
            "commit": commit,
            "layers": cost.table(dense, progress.kept),
            "history": files.read_log(workdir / "metrics.jsonl"),
        }
        files.write_json(workdir / "results.json", results)
    reporter.end(results)
    return results


# ---- training --------------------------------------------------------------------------------


def _train(setup: Setup, progress: Progress, workdir: Path, reporter: Reporter) -> Progress:
    """All epochs that are left; freezes on the way."""
    config, plan = setup.config, setup.plan
    whole = parallel.replicated(setup.mesh)
    train = setup.dataset.train
    images, labels = parallel.place((train.images, train.labels), whole)
    probe_images, probe_labels = _probe_set(setup)
    key = parallel.place(jax.random.key(config.seed), whole)
    reporter.begin(config, plan, progress.epoch * plan.steps_per_epoch)
    progress = dataclasses.replace(progress, state=parallel.place(progress.state, whole))
    saved_at, saved_epoch, steps = time.monotonic(), progress.epoch, None
    while True:
        if progress.epoch >= plan.freeze_epoch and not progress.kept:
            frozen, kept = phases.freeze(config, plan, setup.dense, progress.state)
            frozen = parallel.place(frozen, whole)
            progress = dataclasses.replace(progress, kept=kept, state=frozen)
            reporter.note(_frozen_note(setup, kept))
            saved_at, saved_epoch, steps = -float("inf"), -1, None
        if progress.epoch == plan.epochs:
            break
        architecture = architecture_now(setup, progress.kept)
        if steps is None:
            optimizer = phases.optimizer(config, plan, architecture, frozen=bool(progress.kept))
            recipe = _recipe(setup, architecture)
            steps = compile_steps(recipe, setup.network, optimizer, setup.mesh)

        began = time.monotonic()
        batches = _batches(config, plan, len(train), progress.epoch)
        send = functools.partial(steps, key=key, images=images, labels=labels)
        ratio = _ratio(setup, progress.kept)
        state, metrics = _train_epoch(send, progress.state, batches, ratio, reporter)
        seconds = time.monotonic() - began
        if not np.isfinite(metrics["loss"]).all():
            raise UserError(
                f"training diverged in epoch {progress.epoch + 1}: give a smaller --learning-rate "
                f"than {config.learning_rate:g} (the checkpoints in {workdir} are from before)"
            )

        accuracies = evaluation.probe(
            setup.apply, deployed(architecture, state.params, state.batch_stats),
            probe_images, probe_labels, attacks.linf(config.epsilon), key=key,
        )  # fmt: skip
        progress = dataclasses.replace(
            progress, epoch=progress.epoch + 1, seconds=progress.seconds + seconds, state=state
        )
        row = _row(setup, progress, metrics, accuracies, seconds)
        files.append_log(workdir / "metrics.jsonl", row)
        reporter.epoch(row)
        due = time.monotonic() - saved_at > config.checkpoint_every
        if due and progress.epoch < plan.epochs:
            save(setup, progress, workdir)
            saved_at, saved_epoch = time.monotonic(), progress.epoch
    if progress.epoch != saved_epoch:
        save(setup, progress, workdir)
    return progress


def _train_epoch(
    send: Callable,
    state: TrainState,
    batches: np.ndarray,
    ratio: float | None,
    reporter: Reporter,
) -> tuple[TrainState, Metrics]:
    """One epoch, segment after segment.

    Args:
        send: (state, batches of a segment) -> state, metrics.
        state: before the epoch.
        batches: (segments, steps, N) int32.
        ratio: what is left of the cost once masks are frozen.
        reporter: told of each segment.

    Returns:
        The state after it and the metrics of all its steps, on the host.
    """
    fetched: list[Metrics] = []
    sent_at = time.monotonic()

    def fetch(metrics: Metrics) -> None:
        nonlocal sent_at
        found = jax.device_get(metrics)
        if ratio is not None:
            found = {**found, "cost_ratio": np.full_like(found["cost_ratio"], ratio)}
        fetched.append(found)
        now = time.monotonic()
        rate = batches.shape[1] * batches.shape[2] / (now - sent_at)
        sent_at = now
        latest = {name: float(values[-1]) for name, values in fetched[-1].items()}
        reporter.progress(batches.shape[1], rate, latest)

    pending = None
    for segment in batches:
        state, metrics = send(state, batches=segment)
        if pending is not None:  # fetched one segment late: the device never waits for the host
            fetch(pending)
        pending = metrics
    assert pending is not None
    fetch(pending)
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *fetched)


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


def _batches(config: Config, plan: Plan, images: int, epoch: int) -> np.ndarray:
    """The epoch's image indices, (segments, steps, batch) int32: a permutation by seed and epoch.

    What does not fill a batch or a segment is left to other epochs.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(images).astype(np.int32)
    used = order[: plan.steps_per_epoch * config.batch_size]
    return used.reshape(plan.segments, -1, config.batch_size)


def _probe_set(setup: Setup) -> Any:
    """Held-out images, split over the devices; training images where none are held out."""
    devices, held_out = setup.mesh.size, setup.dataset.validation
    split = held_out if len(held_out) >= devices else setup.dataset.train
    count = min(PROBE_IMAGES, len(split)) // devices * devices
    # Evenly spaced, since a user's images may be sorted by class.
    some = split.take(np.linspace(0, len(split) - 1, count).astype(np.int64))
    return parallel.place((some.images, some.labels), parallel.batch(setup.mesh))


def _row(
    setup: Setup, progress: Progress, metrics: Metrics, probe: evaluation.Probe, seconds: float
) -> dict[str, Any]:
    """The epoch's line in metrics.jsonl."""
    return {
        "epoch": progress.epoch,
        "loss": float(metrics["loss"].mean()),
        "train_fgsm": float(metrics["fgsm_accuracy"].mean()),
        "natural": float(probe.natural),
        "fgsm": float(probe.fgsm),
        "pgd": float(probe.pgd),
        "cost_ratio": float(metrics["cost_ratio"][-1]),
        "frozen": bool(progress.kept),
        "images_per_s": round(len(metrics["loss"]) * setup.config.batch_size / seconds, 1),
        "seconds": round(progress.seconds, 2),
    }


def _ratio(setup: Setup, kept: dict[str, int]) -> float | None:
    """What is left of the cost once masks are frozen."""
    return cost_report(setup.dense, kept)[f"{setup.config.cost}_ratio"] if kept else None


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
    variables = deployed(architecture_now(setup, progress.kept), state.params, state.batch_stats)
    test = setup.dataset.test
    began = time.monotonic()
    report = evaluation.evaluate(
        setup.apply, variables, test.images, test.labels, spec,
        batch_size=256 * setup.mesh.size, mesh=setup.mesh,
        watch=attacks.Watch(
            begin=reporter.attacking, progress=reporter.evaluating, warn=reporter.note
        ),
    )  # fmt: skip
    seconds = time.monotonic() - began
    plan = setup.plan
    trained = plan.epochs * plan.steps_per_epoch * config.batch_size
    return {
        "model": config.model,
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "budget": {"kind": config.cost, "target": plan.target},
        "cost": cost_report(setup.dense, progress.kept),
        "accuracy": {"natural": report.natural, "pgd": report.robust},
        "attack": spec.describe() | {"images": len(test.images)},
        "epochs": plan.epochs,
        "wall_time_s": round(progress.seconds + seconds, 1),
        "images_per_s": round(trained / progress.seconds, 1),
        "config": configs.identity(config),
        "kept": progress.kept,
    }
