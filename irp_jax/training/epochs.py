"""The epochs of a run: train, freeze on the way, go back where the guard says so, save."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import attacks, data, evaluation, files, parallel
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.models import Architecture
from irp_jax.network import cost_report, deployed
from irp_jax.training import curriculum, defenses, guard, phases
from irp_jax.training.overfitting import Health
from irp_jax.training.plan import Plan
from irp_jax.training.progress import Progress, Setup, architecture_now, save
from irp_jax.training.reporter import Reporter
from irp_jax.training.step import Metrics, Recipe, TrainState, compile_steps

PROBE_IMAGES = 256
"""Held-out images on which accuracies are followed during training."""


def train(setup: Setup, progress: Progress, workdir: Path, reporter: Reporter) -> Progress:
    """All epochs that are left.

    Args:
        setup: of the run.
        progress: where it stands.
        workdir: where checkpoints and the log of epochs go.
        reporter: is told how it goes.

    Raises:
        UserError: the loss is not finite any more.
    """
    config, plan, whole = setup.config, setup.plan, parallel.replicated(setup.mesh)
    train_set = setup.dataset.train
    images, labels = parallel.place((train_set.images, train_set.labels), whole)
    probe_images, probe_labels, _ = _probe_set(setup, reporter)
    seen = _some(setup, train_set)
    key = parallel.place(jax.random.key(config.seed), whole)
    reporter.begin(config, plan, progress.epoch * plan.steps_per_epoch)
    progress = dataclasses.replace(progress, state=parallel.place(progress.state, whole))
    saved_at, is_saved, steps = time.monotonic(), True, None
    counted = time.monotonic()
    healthy: Progress | None = None
    while True:
        if progress.epoch >= plan.freeze_epoch and not progress.kept:
            frozen, kept = phases.freeze(config, plan, setup.dense, progress.state)
            frozen = parallel.place(frozen, whole)
            progress = dataclasses.replace(progress, kept=kept, state=frozen)
            reporter.note(_frozen_note(setup, kept))
            saved_at, is_saved, steps = -math.inf, False, None  # soon, smaller than before
        if progress.epoch == plan.epochs:
            break
        architecture = architecture_now(setup, progress.kept)
        if steps is None:
            clipped = dataclasses.replace(config, clip=progress.clip)
            optimizer = phases.optimizer(clipped, plan, architecture, frozen=bool(progress.kept))
            recipe = _recipe(setup, architecture, progress)
            steps = compile_steps(recipe, setup.network, optimizer, setup.mesh)
        if config.guard and guard.is_sound(progress, healthy):
            healthy = guard.copy_of(progress)

        began = time.monotonic()
        batches = _batches(config, plan, len(train_set), progress.epoch)
        send = functools.partial(steps, key=key, images=images, labels=labels)
        ratio = _ratio(setup, progress.kept)
        look = functools.partial(guard.second_look, recipe, setup.network, key, seen, reporter)
        trained = _epoch(send, progress.state, progress.health, batches, ratio, reporter, look)
        now = time.monotonic()
        seconds, progress, counted = now - began, progress.after(now - counted), now
        taken = len(trained.metrics["loss"])
        descent = guard.descent_before(plan, progress)
        progress = dataclasses.replace(
            progress, epoch=progress.epoch + 1,
            state=trained.state, health=trained.health,
            descent=descent.after(_cross_entropy(trained, steps=batches.shape[1])),
            passes=progress.passes + taken / plan.steps_per_epoch * recipe.defense.passes,
            images=progress.images + taken * config.batch_size,
        )  # fmt: skip
        back = None
        if config.guard:
            assert healthy is not None, "the first state of a guarded run is one to go back to"
            back = guard.retreat(setup, healthy, progress, reporter)
        if back is not None:
            progress, healthy, steps = back, None, None
            files.truncate_log(workdir / "metrics.jsonl", progress.epoch)
            reporter.back_to(progress.epoch * plan.steps_per_epoch)
            continue
        if not np.isfinite(progress.descent.last):
            raise UserError(
                f"training diverged in epoch {progress.epoch}: give a smaller --learning-rate "
                f"than {config.learning_rate:g} (the checkpoints in {workdir} are from before)"
            )
        state = trained.state
        accuracies = evaluation.probe(
            setup.apply, deployed(architecture, state.network, state.network["batch_stats"]),
            probe_images, probe_labels, attacks.linf(config.epsilon), key=key,
        )  # fmt: skip
        row = _row(setup, progress, trained.metrics, accuracies, seconds)
        files.append_log(workdir / "metrics.jsonl", row)
        reporter.epoch(row)
        # Only what the guard would go back to is saved: a resumed run has to find it there.
        is_saved = False
        due = time.monotonic() - saved_at > config.checkpoint_every
        if due and progress.epoch < plan.epochs and guard.is_sound(progress, healthy):
            save(setup, progress, workdir)
            saved_at, is_saved = time.monotonic(), True
    if not is_saved:
        save(setup, progress, workdir)
    return progress.after(time.monotonic() - counted)


def _last(metrics: Metrics, name: str) -> float:
    return float(np.ravel(metrics[name])[-1])


class _Trained(NamedTuple):
    """An epoch's outcome: metrics of all its steps, on the host, each leaf (steps,)."""

    state: TrainState
    metrics: Metrics
    health: Health


def _epoch(
    send: Callable,
    state: TrainState,
    health: Health,
    batches: np.ndarray,
    ratio: float | None,
    reporter: Reporter,
    look: Callable[[TrainState, Health], Health],
) -> _Trained:
    """One epoch, segment after segment; cut short by an alarm that a second look confirms.

    Args:
        send: (state, batches of a segment) -> state, metrics.
        state: before the epoch.
        health: before the epoch.
        batches: (segments, steps, N) int32.
        ratio: what is left of the cost once masks are frozen.
        reporter: told of each segment.
        look: what an alarm is made of on a closer look.
    """
    fetched: list[Metrics] = []
    sent_at = time.monotonic()

    def fetch(metrics: Metrics) -> None:
        nonlocal sent_at, health
        found = jax.device_get(metrics)
        if ratio is not None:
            found = {**found, "cost_ratio": np.full_like(found["cost_ratio"], ratio)}
        fetched.append(found)
        # What an alarm has been raised about stays as it was then.
        if "probe_pgd" in found and not health.alarming:
            health = health.after(_last(found, "probe_pgd"), _last(found, "probe_trained"))
        now = time.monotonic()
        rate = batches.shape[1] * batches.shape[2] / (now - sent_at)
        sent_at = now
        latest = {name: _last(found, name) for name in found}
        reporter.progress(batches.shape[1], rate, latest)

    pending, confirmed = None, False
    for segment in batches:
        if health.alarming:
            health = look(state, health)
            confirmed = health.alarming
            if confirmed:
                break
        state, metrics = send(state, batches=segment)
        if pending is not None:  # fetched one segment late: the device never waits for the host
            fetch(pending)
        pending = metrics
    assert pending is not None
    fetch(pending)
    if health.alarming and not confirmed:
        health = look(state, health)
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *fetched)
    return _Trained(state, metrics, health)


def _cross_entropy(trained: _Trained, steps: int) -> float:
    """The epoch's loss as the guard sees it: that of its last segment, if it is above the mean.

    Without what some defences add, which a network that guesses has none of. Not a number if a
    weight or the whole loss is not: the last step's is from before its update.
    """
    if not _is_finite(trained.state) or not np.isfinite(trained.metrics["loss"]).all():
        return math.nan
    losses = trained.metrics["cross_entropy"]
    return float(np.max([losses.mean(), losses[-steps:].mean()]))


@jax.jit
def _is_finite(state: TrainState) -> jax.Array:
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _recipe(setup: Setup, architecture: Architecture, progress: Progress) -> Recipe:
    config = setup.config
    augmentation = data.default_augmentation(config.dataset, setup.dataset.image_shape)
    return Recipe(
        architecture=architecture,
        cost_kind=config.cost,
        threat=attacks.linf(config.epsilon),
        defense=defenses.build(progress.defense),
        augmentation=dataclasses.replace(augmentation, cutout=config.cutout),
        label_smoothing=config.label_smoothing,
        epsilon_steps=setup.plan.epsilon_steps,
        ema=config.ema,
        guarded=config.guard and progress.defense.stronger is not None,
    )


def _threat(setup: Setup, step: int) -> attacks.Threat:
    """What is trained against at a step."""
    whole = attacks.linf(setup.config.epsilon)
    return curriculum.threat_at(whole, step, setup.plan.epsilon_steps)


def _batches(config: Config, plan: Plan, images: int, epoch: int) -> np.ndarray:
    """The epoch's image indices, (segments, steps, batch) int32: a permutation by seed and epoch.

    What does not fill a batch or a segment is left to other epochs.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(images).astype(np.int32)
    used = order[: plan.steps_per_epoch * config.batch_size]
    return used.reshape(plan.segments, -1, config.batch_size)


def _probe_set(setup: Setup, reporter: Reporter) -> Any:
    """Held-out images, split over the devices; training images where none are held out."""
    held_out = setup.dataset.validation
    if len(held_out) >= setup.mesh.size:
        return _some(setup, held_out)
    reporter.note("no images are held out: the accuracies of epochs are of training images")
    return _some(setup, setup.dataset.train)


def _some(setup: Setup, split: Any) -> Any:
    """A few hundred images of a split, their labels and indices, split over the devices."""
    devices = setup.mesh.size
    count = min(PROBE_IMAGES, len(split)) // devices * devices
    # Evenly spaced, since a user's images may be sorted by class.
    indices = np.linspace(0, len(split) - 1, count).astype(np.int32)
    some = split.take(indices)
    return parallel.place((some.images, some.labels, indices), parallel.batch(setup.mesh))


def _row(
    setup: Setup, progress: Progress, metrics: Metrics, probe: evaluation.Probe, seconds: float
) -> dict[str, Any]:
    """The epoch's line in metrics.jsonl."""
    health = progress.health
    probed = {"probe_trained": health.trained, "probe_pgd": health.pgd}
    return {
        "epoch": progress.epoch,
        "defense": progress.defense.name,
        "loss": float(metrics["loss"].mean()),
        "train_accuracy": float(metrics["train_accuracy"].mean()),
        "natural": float(probe.natural),
        "fgsm": float(probe.fgsm),
        "pgd": float(probe.pgd),
        **(probed if "probe_pgd" in metrics else {}),
        "epsilon": float(_threat(setup, progress.epoch * setup.plan.steps_per_epoch - 1).epsilon),
        "cost_ratio": float(metrics["cost_ratio"][-1]),
        "frozen": bool(progress.kept),
        "images_per_s": round(len(metrics["loss"]) * setup.config.batch_size / seconds, 1),
        "seconds": round(progress.seconds, 2),
    }


def _ratio(setup: Setup, kept: dict[str, int]) -> float | None:
    """What is left of the cost once masks are frozen."""
    return cost_report(setup.dense, kept)[f"{setup.config.cost}_ratio"] if kept else None


def _frozen_note(setup: Setup, kept: dict[str, int]) -> str:
    report, limit = cost_report(setup.dense, kept), setup.plan.limit
    over = report[setup.config.cost] - limit  # the published rule may end there
    return (
        f"masks frozen: {report['macs'] / 1e6:.2f}M of {report['dense_macs'] / 1e6:.2f}M MACs "
        f"({report['macs_ratio']:.1%}), "
        f"{report['params']:,} of {report['dense_params']:,} parameters"
        + (f", {over / limit:.1%} over the budget of {limit:,}" if over > 0 else "")
    )
