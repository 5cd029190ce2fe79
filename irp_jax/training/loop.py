"""The loop over epochs: trains, freezes the masks, rounds, rolls back on an alarm, saves.

An epoch consists of a few compiled segments. The guard looks at the metrics of each.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import attacks, evaluation, files, parallel
from irp_jax.errors import UserError
from irp_jax.inference.function import deployed, inference
from irp_jax.pruning import cost
from irp_jax.training import guard, underway
from irp_jax.training.image_source import Resident, on_devices, order, sample_images
from irp_jax.training.logs import Log
from irp_jax.training.plan import threat_at
from irp_jax.training.preemption import Preemption
from irp_jax.training.program import Program, compile_for, make_teacher
from irp_jax.training.progress import Progress, Reporter, Setup
from irp_jax.training.saves import Saves
from irp_jax.training.segments import Begun, epoch_loss, run_segments
from irp_jax.training.state import TrainState
from irp_jax.training.step import Metrics
from irp_jax.training.teacher import TeacherOutputs
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
    held_out = probe_set(setup, reporter)
    resident = on_devices(setup)
    if progress.rollbacks:  # the run was resumed, and `begin` shows only the defense of the config
        clip = f", gradients no longer than {progress.clip:g}" if progress.clip else ""
        reporter.note(f"going on with {progress.defense}{clip}, as the guard decided")
    reporter.begin(config, plan, progress.epoch * plan.steps_per_epoch)
    for log in logs:
        log.begin(files.read_log(workdir / "metrics.jsonl"))
    progress = dataclasses.replace(progress, state=parallel.place(progress.state, whole))
    saves, counted, is_first = Saves(setup, progress, workdir, preemption), time.monotonic(), True
    program: Program | None = None
    teacher = make_teacher(setup, progress, resident)
    healthy: Progress | None = None
    while True:
        if progress.epoch == plan.parent_epoch and progress.parent is None:
            progress = with_parent(setup, progress, reporter)  # before the network is pruned
            teacher, program = make_teacher(setup, progress, resident), None
        if progress.epoch >= plan.freeze_epoch and not progress.keep_counts:
            progress = frozen(setup, progress, reporter)
            program = None
            saves.changed()
        rounded = plan.quantize_epoch is not None and progress.epoch >= plan.quantize_epoch
        if rounded and progress.quantization is None:
            progress, program = quantized(setup, progress, reporter), None
        if progress.epoch == plan.epochs:
            break
        program = program or compile_for(setup, progress)
        if config.guard and guard.is_sound(progress, healthy):
            healthy = guard.copy_of(progress)
        begun, spent = None, 0.0
        if is_first:  # of this process, so that an earlier one may have begun it
            is_first = False
            begun, spent = _resumed(setup, progress, workdir, reporter)
            progress = progress.after(spent)
            if begun is not None:  # the arrays of the start are not needed any more
                progress = dataclasses.replace(progress, state=begun.state)

        began = time.monotonic()
        save = functools.partial(saves.within_epoch, progress, healthy, counted - spent)
        outputs = teacher.outputs(progress.epoch) if teacher else TeacherOutputs(progress.epoch)
        progress, metrics = advance(
            setup, progress, program, resident, outputs, reporter, begun, save
        )
        now = time.monotonic()
        seconds, progress, counted = now - began, progress.after(now - counted), now
        back = None
        if config.guard:
            assert healthy is not None, "the first state of a guarded run is sound"
            back = guard.roll_back(setup, healthy, progress, reporter)
        if back is not None:
            progress, healthy, program = back, None, None
            saves.rolled_back()
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
        accuracies = _probe(setup, progress, held_out, resident.key)
        row = _row(setup, progress, metrics, accuracies, spent + seconds)
        files.append_log(workdir / "metrics.jsonl", row)
        for log in logs:
            log.add(row)
        reporter.epoch(row)
        saves.after_epoch(progress, sound=guard.is_sound(progress, healthy))
    saves.finish(progress)
    return progress.after(time.monotonic() - counted)


def _resumed(
    setup: Setup, progress: Progress, workdir: Path, reporter: Reporter
) -> tuple[Begun | None, float]:
    """Returns what an earlier process did of the epoch, None for nothing, and its time."""
    found = underway.restore(setup, progress, workdir, reporter.note)
    if found is None:
        return None, 0.0
    begun, seconds = found
    plan = setup.plan
    done = progress.epoch + (begun.segments - 1) / plan.segments  # the last is reported later
    reporter.back_to(round(done * plan.steps_per_epoch))
    state = parallel.place(begun.state, parallel.replicated(setup.mesh))
    return begun._replace(state=state), seconds


def _threat(setup: Setup, step: int) -> attacks.Threat:
    """Returns the ball that training uses at a step."""
    whole = attacks.linf(setup.config.epsilon)
    return threat_at(whole, step, setup.plan.epsilon_steps)


def probe_set(setup: Setup, reporter: Reporter) -> Any:
    """Returns held-out images, or training images if none are held out, split over the devices."""
    held_out = setup.dataset.validation
    if len(held_out) >= setup.mesh.size:
        return sample_images(setup, held_out)
    few = f"too few images ({len(held_out)})" if len(held_out) else "no images"
    reporter.note(f"{few} are held out: the accuracies of epochs are of training images")
    return sample_images(setup, setup.dataset.train)


def _probe(setup: Setup, progress: Progress, held_out: Any, key: jax.Array) -> evaluation.Probe:
    """Measures the network as it would be deployed, on what `probe_set` returned."""
    images, labels, _ = held_out
    network = progress.state.network
    return evaluation.probe(
        inference(setup.model.network, progress.quantization),
        deployed(setup.graph, network, network["batch_stats"]),
        images, labels, attacks.linf(setup.config.epsilon), key=key,
    )  # fmt: skip


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


def advance(
    setup: Setup,
    progress: Progress,
    program: Program,
    resident: Resident,
    outputs: TeacherOutputs,
    reporter: Reporter,
    begun: Begun | None = None,
    between: Callable[[Begun], None] = lambda begun: None,
) -> tuple[Progress, Metrics]:
    """Trains the rest of an epoch.

    Args:
        setup: of the run.
        progress: at the start of the epoch.
        program, resident, outputs, reporter: of the run.
        begun: what was done of the epoch; None for nothing.
        between: called after each segment.

    Returns:
        The run, its time not counted yet, and the metrics of all steps of the epoch.
    """
    config, plan = setup.config, setup.plan
    begun = begun or Begun(progress.state, progress.accuracy_record)
    batches = order(config, plan, len(resident.labels), progress.epoch)
    shown = resident.source.segments(batches[begun.segments :], outputs.view)

    def send(state: TrainState, batches: np.ndarray) -> tuple[TrainState, Metrics]:
        return program.steps(
            state, key=resident.key, images=next(shown), labels=resident.labels, batches=batches,
            view=jnp.int32(outputs.view), taught=outputs.probabilities,
        )  # fmt: skip

    check_alarm = functools.partial(
        guard.check_alarm, program.recipe, program.network, resident.key, resident.seen, reporter
    )
    ratio = _ratio(setup, progress.keep_counts)
    with contextlib.closing(shown):  # after a confirmed alarm, the rest is not read
        trained = run_segments(send, begun, batches, ratio, reporter, check_alarm, between)
    taken = len(trained.metrics["loss"])
    loss_record = guard.loss_record_before(plan, progress)
    later = dataclasses.replace(
        progress, epoch=progress.epoch + 1, state=trained.state, accuracy_record=trained.record,
        loss_record=loss_record.after(epoch_loss(trained, steps=batches.shape[1])),
        passes=progress.passes + outputs.passes
        + taken / plan.steps_per_epoch * program.recipe.passes,
        images=progress.images + taken * config.batch_size,
    )  # fmt: skip
    return later, trained.metrics


def _ratio(setup: Setup, keep_counts: dict[str, int]) -> float | None:
    """Returns the share of the cost that is left, or None before masks are frozen."""
    return (
        cost.report(setup.graph, keep_counts)[f"{setup.config.cost}_ratio"] if keep_counts else None
    )
