"""The epochs of a run: train, freeze on the way, go back where the guard says so, save."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from irp_jax import attacks, draws, evaluation, files, parallel
from irp_jax.errors import UserError
from irp_jax.network import cost_report, deployed
from irp_jax.training import curriculum, guard, phases, segments
from irp_jax.training.progress import Progress, Setup, save
from irp_jax.training.reporter import Reporter
from irp_jax.training.step import Metrics
from irp_jax.training.teacher import Lesson


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
    probe_images, probe_labels, _ = _probe_set(setup, reporter)
    resident = segments.on_devices(setup)
    if progress.retreats:  # resumed: what follows names the defence the run was begun with
        clip = f", gradients no longer than {progress.clip:g}" if progress.clip else ""
        reporter.note(f"going on with {progress.defense}{clip}, as the guard had it")
    reporter.begin(config, plan, progress.epoch * plan.steps_per_epoch)
    progress = dataclasses.replace(progress, state=parallel.place(progress.state, whole))
    saved_at, is_saved, counted = time.monotonic(), True, time.monotonic()
    program: segments.Program | None = None
    teacher = segments.teacher(setup, progress, resident)
    healthy: Progress | None = None
    while True:
        if progress.epoch == plan.parent_epoch and progress.parent is None:
            progress = _with_parent(setup, progress, reporter)  # before anything is cut off it
            teacher, program = segments.teacher(setup, progress, resident), None
        if progress.epoch >= plan.freeze_epoch and not progress.kept:
            progress = _frozen(setup, progress, reporter)
            saved_at, is_saved, program = -math.inf, False, None  # soon, without what was cut
        if progress.epoch == plan.epochs:
            break
        program = program or segments.compiled(setup, progress)
        if config.guard and guard.is_sound(progress, healthy):
            healthy = guard.copy_of(progress)

        began = time.monotonic()
        lesson = teacher.lesson(progress.epoch) if teacher else Lesson(progress.epoch)
        progress, metrics = segments.advance(setup, progress, program, resident, lesson, reporter)
        now = time.monotonic()
        seconds, progress, counted = now - began, progress.after(now - counted), now
        back = None
        if config.guard:
            assert healthy is not None, "the first state of a guarded run is one to go back to"
            back = guard.retreat(setup, healthy, progress, reporter)
        if back is not None:
            progress, healthy, program = back, None, None
            teacher = teacher if back.parent or setup.teacher else None
            files.truncate_log(workdir / "metrics.jsonl", progress.epoch)
            reporter.back_to(progress.epoch * plan.steps_per_epoch)
            continue
        if not np.isfinite(progress.descent.last):
            raise UserError(
                f"training diverged in epoch {progress.epoch}: give a smaller --learning-rate "
                f"than {config.learning_rate:g} (the checkpoints in {workdir} are from before)"
            )
        network = progress.state.network
        accuracies = evaluation.probe(
            setup.apply, deployed(setup.graph, network, network["batch_stats"]),
            probe_images, probe_labels, attacks.linf(config.epsilon), key=resident.key,
        )  # fmt: skip
        row = _row(setup, progress, metrics, accuracies, seconds)
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


def _with_parent(setup: Setup, progress: Progress, reporter: Reporter) -> Progress:
    """The run with its dense network, as it is now, as the teacher of what it becomes."""
    assert not progress.kept, "a parent is whole"
    network = progress.state.network
    parent = jax.device_get(deployed(setup.graph, network, network["batch_stats"]))
    share = f"{setup.config.teacher_weight:.0%} of the target from here on"
    reporter.note(f"the dense network of {progress.epoch} epochs is the teacher: {share}")
    return dataclasses.replace(progress, parent=parent)


def _frozen(setup: Setup, progress: Progress, reporter: Reporter) -> Progress:
    """The run with masks frozen and the network cut."""
    fresh = None
    if setup.plan.reinit:
        # A number that no step has: the network began with other weights.
        key = jax.random.fold_in(draws.key(setup.config.seed), 2**32 - 2)
        drawn = jax.device_get(jax.jit(setup.model.init)(key))
        fresh = dict(zip(("params", "batch_stats"), drawn, strict=True))
    state, kept = phases.freeze(setup.config, setup.plan, setup.graph, progress.state, fresh)
    reporter.note(_frozen_note(setup, kept))
    state = parallel.place(state, parallel.replicated(setup.mesh))
    return dataclasses.replace(progress, kept=kept, state=state)


def _threat(setup: Setup, step: int) -> attacks.Threat:
    """What is trained against at a step."""
    whole = attacks.linf(setup.config.epsilon)
    return curriculum.threat_at(whole, step, setup.plan.epsilon_steps)


def _probe_set(setup: Setup, reporter: Reporter) -> Any:
    """Held-out images, split over the devices; training images where none are held out."""
    held_out = setup.dataset.validation
    if len(held_out) >= setup.mesh.size:
        return segments.some(setup, held_out)
    few = f"too few images ({len(held_out)})" if len(held_out) else "no images"
    reporter.note(f"{few} are held out: the accuracies of epochs are of training images")
    return segments.some(setup, setup.dataset.train)


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


def _frozen_note(setup: Setup, kept: dict[str, int]) -> str:
    report, limit = cost_report(setup.graph, kept), setup.plan.limit
    over = report[setup.config.cost] - limit  # the published rule may end there
    return (
        f"masks frozen: {report['macs'] / 1e6:.2f}M of {report['dense_macs'] / 1e6:.2f}M MACs "
        f"({report['macs_ratio']:.1%}), "
        f"{report['params']:,} of {report['dense_params']:,} parameters"
        + (f", {over / limit:.1%} over the budget of {limit:,}" if over > 0 else "")
    )
