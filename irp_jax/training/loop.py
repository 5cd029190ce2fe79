"""The loop over epochs: trains, freezes the masks, rounds, rolls back on an alarm, saves.

An epoch consists of a few compiled segments. The guard looks at the metrics of each.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import attacks, data, evaluation, files, parallel
from irp_jax.config import AVERAGE
from irp_jax.data import Augmentation
from irp_jax.errors import UserError
from irp_jax.inference import deployed, inference
from irp_jax.quantization import emulated
from irp_jax.record import cost_report
from irp_jax.training import defenses, guard
from irp_jax.training import optimizer as optimizers
from irp_jax.training.logs import Log
from irp_jax.training.overfitting import AccuracyRecord
from irp_jax.training.plan import threat_at
from irp_jax.training.preemption import Preemption
from irp_jax.training.progress import Progress, Reporter, Setup, save
from irp_jax.training.source import InMemory, Resident, on_devices, order, sample_images
from irp_jax.training.state import TrainState
from irp_jax.training.step import Metrics, Recipe, compile_steps
from irp_jax.training.teacher import Teacher, TeacherOutputs
from irp_jax.training.transitions import frozen, quantized, with_parent


def train(
    setup: Setup,
    progress: Progress,
    workdir: Path,
    reporter: Reporter,
    logs: Sequence[Log] = (),
    preemption: Preemption | None = None,
) -> Progress:
    """Trains all remaining epochs.

    Args:
        setup: of the run.
        progress: the state to start from.
        workdir: folder of the checkpoints and of the log of epochs.
        reporter: receives messages and progress.
        logs: copies of the log of epochs.
        preemption: may ask the run to stop; None for a run that nobody stops.

    Returns:
        The progress after the last epoch, which is saved.

    Raises:
        UserError: the loss is not finite.
        Preempted: the run was asked to stop. All sound states are saved.
    """
    preemption = preemption or Preemption()
    config, plan, whole = setup.config, setup.plan, parallel.replicated(setup.mesh)
    probe_images, probe_labels, _ = _probe_set(setup, reporter)
    resident = on_devices(setup)
    if progress.rollbacks:  # the run was resumed, and `begin` shows only the defense of the config
        clip = f", gradients no longer than {progress.clip:g}" if progress.clip else ""
        reporter.note(f"going on with {progress.defense}{clip}, as the guard decided")
    reporter.begin(config, plan, progress.epoch * plan.steps_per_epoch)
    for log in logs:
        log.begin(files.read_log(workdir / "metrics.jsonl"))
    progress = dataclasses.replace(progress, state=parallel.place(progress.state, whole))
    saved_at, is_saved, counted = time.monotonic(), True, time.monotonic()
    program: Compiled | None = None
    teacher = make_teacher(setup, progress, resident)
    healthy: Progress | None = None
    while True:
        if progress.epoch == plan.parent_epoch and progress.parent is None:
            progress = with_parent(setup, progress, reporter)  # before the network is pruned
            teacher, program = make_teacher(setup, progress, resident), None
        if progress.epoch >= plan.freeze_epoch and not progress.keep_counts:
            progress = frozen(setup, progress, reporter)
            saved_at, is_saved, program = -math.inf, False, None  # save after this epoch
        begun = plan.quantize_epoch is not None and progress.epoch >= plan.quantize_epoch
        if begun and progress.quantization is None:
            progress, program = quantized(setup, progress, reporter), None
        if progress.epoch == plan.epochs:
            break
        program = program or compile_for(setup, progress)
        if config.guard and guard.is_sound(progress, healthy):
            healthy = guard.copy_of(progress)

        began = time.monotonic()
        outputs = teacher.outputs(progress.epoch) if teacher else TeacherOutputs(progress.epoch)
        progress, metrics = advance(setup, progress, program, resident, outputs, reporter)
        now = time.monotonic()
        seconds, progress, counted = now - began, progress.after(now - counted), now
        back = None
        if config.guard:
            assert healthy is not None, "the first state of a guarded run is sound"
            back = guard.roll_back(setup, healthy, progress, reporter)
        if back is not None:
            progress, healthy, program = back, None, None
            teacher = teacher if back.parent or setup.teacher else None
            files.truncate_log(workdir / "metrics.jsonl", progress.epoch)
            for log in logs:
                log.begin(files.read_log(workdir / "metrics.jsonl"))
            reporter.back_to(progress.epoch * plan.steps_per_epoch)
            continue
        if not np.isfinite(progress.loss_record.last):
            raise UserError(
                f"training diverged in epoch {progress.epoch}: give a smaller --learning-rate "
                f"than {config.learning_rate:g}, or a network whose gradient is finite "
                f"(checkpoints in {workdir} are from earlier epochs)"
            )
        preemption.hold()  # until this epoch is saved
        network = progress.state.network
        accuracies = evaluation.probe(
            inference(setup.model.network, progress.quantization),
            deployed(setup.graph, network, network["batch_stats"]),
            probe_images, probe_labels, attacks.linf(config.epsilon), key=resident.key,
        )  # fmt: skip
        row = _row(setup, progress, metrics, accuracies, seconds)
        files.append_log(workdir / "metrics.jsonl", row)
        for log in logs:
            log.add(row)
        reporter.epoch(row)
        # Only sound states are saved, so that a resumed run rolls back to the same state.
        is_saved = False
        due = preemption.asked or time.monotonic() - saved_at > config.checkpoint_every
        if due and progress.epoch < plan.epochs:
            if guard.is_sound(progress, healthy):
                save(setup, progress, workdir)
                saved_at, is_saved = time.monotonic(), True
            preemption.release()
    if not is_saved:
        save(setup, progress, workdir)
    preemption.release()
    return progress.after(time.monotonic() - counted)


def _threat(setup: Setup, step: int) -> attacks.Threat:
    """Returns the ball that training uses at a step."""
    whole = attacks.linf(setup.config.epsilon)
    return threat_at(whole, step, setup.plan.epsilon_steps)


def _probe_set(setup: Setup, reporter: Reporter) -> Any:
    """Returns held-out images, or training images if none are held out, split over the devices."""
    held_out = setup.dataset.validation
    if len(held_out) >= setup.mesh.size:
        return sample_images(setup, held_out)
    few = f"too few images ({len(held_out)})" if len(held_out) else "no images"
    reporter.note(f"{few} are held out: the accuracies of epochs are of training images")
    return sample_images(setup, setup.dataset.train)


def _row(
    setup: Setup, progress: Progress, metrics: Metrics, probe: evaluation.Probe, seconds: float
) -> dict[str, Any]:
    """Returns the line of an epoch in metrics.jsonl."""
    accuracy_record = progress.accuracy_record
    probed = {"probe_trained": accuracy_record.trained, "probe_pgd": accuracy_record.pgd}
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
        "frozen": bool(progress.keep_counts),
        "quantized": progress.quantization is not None,
        "images_per_s": round(len(metrics["loss"]) * setup.config.batch_size / seconds, 1),
        "seconds": round(progress.seconds, 2),
    }


class Compiled(NamedTuple):
    """The compiled program. It is made anew when teacher, masks, rounding, defense or clipping
    change.

    Attributes:
        recipe: of its steps.
        network: that is trained: the model, or its emulation in 8 bits.
        steps: see `compile_steps`.
    """

    recipe: Recipe
    network: Callable
    steps: Callable


def make_teacher(setup: Setup, progress: Progress, resident: Resident) -> Teacher | None:
    """Returns the teacher for the epochs from now on; None without a teacher.

    It needs all images on the devices: see `source.check`.
    """
    if setup.teacher is not None:
        apply, variables = setup.teacher.apply, setup.teacher.variables
    elif progress.parent is not None:
        apply, variables = setup.apply, progress.parent
    else:
        return None
    assert isinstance(resident.source, InMemory)
    return Teacher(
        apply, variables, augmentation=_augmentation(setup), key=resident.key,
        images=resident.source.images, mesh=setup.mesh, epochs=setup.plan.epochs,
        views=setup.config.teacher_views,
        first=(progress.parent is not None and setup.plan.parent_epoch) or 0,
    )  # fmt: skip


def compile_for(setup: Setup, progress: Progress) -> Compiled:
    """Returns the program for the present network, defense and clipping."""
    clipped = dataclasses.replace(setup.config, clip=progress.clip)
    optimizer = optimizers.build(
        clipped, setup.plan, setup.graph, frozen=bool(progress.keep_counts)
    )
    recipe = _recipe(setup, progress)
    network = emulated(setup.model.network, progress.quantization)
    steps = compile_steps(recipe, network, optimizer, setup.mesh)
    return Compiled(recipe, network, steps)


def advance(
    setup: Setup,
    progress: Progress,
    program: Compiled,
    resident: Resident,
    outputs: TeacherOutputs,
    reporter: Reporter,
) -> tuple[Progress, Metrics]:
    """Trains one epoch. Returns the run, its time not counted yet, and the metrics of all steps."""
    config, plan = setup.config, setup.plan
    batches = order(config, plan, len(resident.labels), progress.epoch)
    shown = resident.source.segments(batches, outputs.view)

    def send(state: TrainState, batches: np.ndarray) -> tuple[TrainState, Metrics]:
        return program.steps(
            state, key=resident.key, images=next(shown), labels=resident.labels, batches=batches,
            view=jnp.int32(outputs.view), taught=outputs.probabilities,
        )  # fmt: skip

    check_alarm = functools.partial(
        guard.check_alarm,
        program.recipe,
        program.network,
        resident.key,
        resident.seen,
        reporter,
    )
    ratio = _ratio(setup, progress.keep_counts)
    with contextlib.closing(shown):  # after a confirmed alarm, the rest is not read
        trained = _epoch(
            send, progress.state, progress.accuracy_record, batches, ratio, reporter, check_alarm
        )
    taken = len(trained.metrics["loss"])
    loss_record = guard.loss_record_before(plan, progress)
    later = dataclasses.replace(
        progress, epoch=progress.epoch + 1, state=trained.state, accuracy_record=trained.record,
        loss_record=loss_record.after(_cross_entropy(trained, steps=batches.shape[1])),
        passes=progress.passes + outputs.passes
        + taken / plan.steps_per_epoch * program.recipe.passes,
        images=progress.images + taken * config.batch_size,
    )  # fmt: skip
    return later, trained.metrics


def _ratio(setup: Setup, keep_counts: dict[str, int]) -> float | None:
    """Returns the share of the cost that is left, or None before masks are frozen."""
    return (
        cost_report(setup.graph, keep_counts)[f"{setup.config.cost}_ratio"] if keep_counts else None
    )


def _last(metrics: Metrics, name: str) -> float:
    return float(np.ravel(metrics[name])[-1])


class _Trained(NamedTuple):
    """The result of an epoch. The metrics of its steps are on the host, each leaf (steps,)."""

    state: TrainState
    metrics: Metrics
    record: AccuracyRecord


def _epoch(
    send: Callable,
    state: TrainState,
    record: AccuracyRecord,
    batches: np.ndarray,
    ratio: float | None,
    reporter: Reporter,
    check_alarm: Callable[[TrainState, AccuracyRecord], AccuracyRecord],
) -> _Trained:
    """Runs the segments of one epoch. Stops early if the check confirms an alarm.

    Args:
        send: (state, batches of a segment) -> state, metrics.
        state: before the epoch.
        record: before the epoch.
        batches: (segments, steps, N) int32.
        ratio: share of the cost that is left; None before masks are frozen.
        reporter: is told of each segment.
        check_alarm: checks an alarm: (state, record of accuracies) -> new record.
    """
    fetched: list[Metrics] = []
    sent_at = time.monotonic()

    def fetch(metrics: Metrics) -> None:
        nonlocal sent_at, record
        found = jax.device_get(metrics)
        if ratio is not None:
            found = {**found, "cost_ratio": np.full_like(found["cost_ratio"], ratio)}
        fetched.append(found)
        # After an alarm the record does not change until the check.
        if "probe_pgd" in found and not record.alarming:
            record = record.after(_last(found, "probe_pgd"), _last(found, "probe_trained"))
        now = time.monotonic()
        rate = batches.shape[1] * batches.shape[2] / (now - sent_at)
        sent_at = now
        latest = {name: _last(found, name) for name in found}
        reporter.progress(batches.shape[1], rate, latest)

    pending, confirmed = None, False
    for segment in batches:
        if record.alarming:
            record = check_alarm(state, record)
            confirmed = record.alarming
            if confirmed:
                break
        state, metrics = send(state, batches=segment)
        if pending is not None:  # one segment late, so that the device does not wait for the host
            fetch(pending)
        pending = metrics
    assert pending is not None
    fetch(pending)
    if record.alarming and not confirmed:
        record = check_alarm(state, record)
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *fetched)
    return _Trained(state, metrics, record)


def _cross_entropy(trained: _Trained, steps: int) -> float:
    """Returns the epoch's loss for the guard.

    It is the mean over the epoch or over its last segment, whichever is larger. It is the
    cross-entropy alone, because the other terms of some defenses are zero for a network
    that guesses. It is NaN if a weight or a loss is not finite. The weights are checked, too,
    because the last loss was computed before the last update.
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
    """Returns the random augmentation of training images."""
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
        # Only after the freeze: while masks change, averaged weights do not belong to one network.
        taught_by_average=config.teacher == AVERAGE and bool(progress.keep_counts),
        epsilon_steps=setup.plan.epsilon_steps,
        ema=config.ema,
        guarded=config.guard and progress.defense.stronger is not None,
    )
