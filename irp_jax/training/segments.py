"""One epoch: compiled segments one after another, each looked at by the guard."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import attacks, data, draws, parallel
from irp_jax.config import AVERAGE, Config
from irp_jax.data import Augmentation, Split
from irp_jax.network import cost_report
from irp_jax.training import defenses, guard, phases
from irp_jax.training.overfitting import Health
from irp_jax.training.plan import Plan
from irp_jax.training.progress import Progress, Setup
from irp_jax.training.reporter import Reporter
from irp_jax.training.step import Metrics, Recipe, TrainState, compile_steps
from irp_jax.training.teacher import Lesson, Teacher

FEW = 256
"""Images that accuracies are followed on during training, where a whole set would be too many."""


class Resident(NamedTuple):
    """What stays on the devices throughout.

    Attributes:
        images, labels: of the training split.
        seen: a few of them, their labels and indices, for a second look at an alarm.
        key: of the run.
    """

    images: jax.Array
    labels: jax.Array
    seen: tuple[jax.Array, jax.Array, jax.Array]
    key: jax.Array


def on_devices(setup: Setup) -> Resident:
    """What a run needs there."""
    whole, split = parallel.replicated(setup.mesh), setup.dataset.train
    images: Any = parallel.place(split.images, whole)
    labels: Any = parallel.place(split.labels, whole)
    key = parallel.place(draws.key(setup.config.seed), whole)
    return Resident(images, labels, some(setup, split), key)


class Program(NamedTuple):
    """What is compiled anew once the network is cut, or another defence or clipping is in force.

    Attributes:
        recipe: of its steps.
        steps: see `compile_steps`.
    """

    recipe: Recipe
    steps: Callable


def teacher(setup: Setup, progress: Progress, resident: Resident) -> Teacher | None:
    """Who teaches from here on; None where nobody does."""
    if setup.teacher is not None:
        apply, variables = setup.teacher.apply, setup.teacher.variables
    elif progress.parent is not None:
        apply, variables = setup.apply, progress.parent
    else:
        return None
    return Teacher(
        apply, variables, augmentation=_augmentation(setup), key=resident.key,
        images=resident.images, mesh=setup.mesh, epochs=setup.plan.epochs,
        views=setup.config.teacher_views,
        first=(progress.parent is not None and setup.plan.parent_epoch) or 0,
    )  # fmt: skip


def compiled(setup: Setup, progress: Progress) -> Program:
    """What the run goes on with from here."""
    clipped = dataclasses.replace(setup.config, clip=progress.clip)
    optimizer = phases.optimizer(clipped, setup.plan, setup.graph, frozen=bool(progress.kept))
    recipe = _recipe(setup, progress)
    steps = compile_steps(recipe, setup.model.network, optimizer, setup.mesh)
    return Program(recipe, steps)


def advance(
    setup: Setup,
    progress: Progress,
    program: Program,
    resident: Resident,
    lesson: Lesson,
    reporter: Reporter,
) -> tuple[Progress, Metrics]:
    """The run an epoch later, its time not counted, and the metrics of all steps."""
    config, plan = setup.config, setup.plan
    batches = _batches(config, plan, len(resident.images), progress.epoch)
    send = functools.partial(
        program.steps, key=resident.key, images=resident.images, labels=resident.labels,
        view=jnp.int32(lesson.view), taught=lesson.answers,
    )  # fmt: skip
    look = functools.partial(
        guard.second_look,
        program.recipe,
        setup.model.network,
        resident.key,
        resident.seen,
        reporter,
    )
    ratio = _ratio(setup, progress.kept)
    trained = _epoch(send, progress.state, progress.health, batches, ratio, reporter, look)
    taken = len(trained.metrics["loss"])
    descent = guard.descent_before(plan, progress)
    later = dataclasses.replace(
        progress, epoch=progress.epoch + 1, state=trained.state, health=trained.health,
        descent=descent.after(_cross_entropy(trained, steps=batches.shape[1])),
        passes=progress.passes + lesson.passes
        + taken / plan.steps_per_epoch * program.recipe.passes,
        images=progress.images + taken * config.batch_size,
    )  # fmt: skip
    return later, trained.metrics


def _ratio(setup: Setup, kept: dict[str, int]) -> float | None:
    """What is left of the cost once masks are frozen."""
    return cost_report(setup.graph, kept)[f"{setup.config.cost}_ratio"] if kept else None


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


def _augmentation(setup: Setup) -> Augmentation:
    """What is done at random to each training image."""
    config = setup.config
    usual = data.default_augmentation(config.dataset, setup.dataset.image_shape)
    return dataclasses.replace(usual, cutout=config.cutout)


def _recipe(setup: Setup, progress: Progress) -> Recipe:
    config = setup.config
    return Recipe(
        graph=setup.graph,
        cost_kind=config.cost,
        threat=attacks.linf(config.epsilon),
        defense=defenses.build(progress.defense, config),
        augmentation=_augmentation(setup),
        label_smoothing=config.label_smoothing,
        steps=setup.plan.steps,
        teacher_weight=config.teacher_weight,
        # Not before the cut: while masks move, an average of weights is of no network at all.
        taught_by_average=config.teacher == AVERAGE and bool(progress.kept),
        epsilon_steps=setup.plan.epsilon_steps,
        ema=config.ema,
        guarded=config.guard and progress.defense.stronger is not None,
    )


def _batches(config: Config, plan: Plan, images: int, epoch: int) -> np.ndarray:
    """The epoch's image indices, (segments, steps, batch) int32: a permutation by seed and epoch.

    What does not fill a batch or a segment is left to other epochs.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(images).astype(np.int32)
    used = order[: plan.steps_per_epoch * config.batch_size]
    return used.reshape(plan.segments, -1, config.batch_size)


def some(setup: Setup, split: Split) -> Any:
    """A few hundred images of a split, their labels and indices, split over the devices."""
    devices = setup.mesh.size
    count = min(max(FEW, devices), len(split)) // devices * devices
    # Evenly spaced, since a user's images may be sorted by class.
    indices = np.linspace(0, len(split) - 1, count).astype(np.int32)
    few = split.take(indices)
    return parallel.place((few.images, few.labels, indices), parallel.batch(setup.mesh))
