"""The guard: decides which states are sound, and how a run rolls back after an alarm."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax import parallel, prng
from irp_jax.training import defenses
from irp_jax.training.defenses import Choice
from irp_jax.training.divergence import LossRecord, stronger_clipping
from irp_jax.training.overfitting import PATIENCE, AccuracyRecord
from irp_jax.training.plan import Plan
from irp_jax.training.progress import Progress, Reporter, Setup, memory_of
from irp_jax.training.state import TrainState
from irp_jax.training.step import Recipe, probe_state


def is_sound(progress: Progress, healthy: Progress | None) -> bool:
    """Returns whether a run may roll back to its present state.

    The first state of a run is sound, and so is the state that a run resumes from. A state that is
    not suspicious is sound. A suspicious state is sound if there was no sound state for `PATIENCE`
    epochs, because a collapse takes fewer. Divergence can take longer. So a state with a suspicious
    loss is not sound if its loss is not falling or is that of guessing, as long as clipping can
    still be applied.

    Args:
        progress: of the run now.
        healthy: its last sound state; None at the start, after resuming and after a rollback.
    """
    losses = progress.loss_record
    if healthy is None or not (progress.accuracy_record.suspicious or losses.suspicious):
        return True
    stays_high = losses.stuck or not losses.falling
    if losses.suspicious and stays_high and stronger_clipping(progress.clip):
        return False
    return progress.epoch >= healthy.epoch + PATIENCE


def loss_record_before(plan: Plan, progress: Progress) -> LossRecord:
    """Returns the record of losses that the next epoch is compared with.

    It is without earlier losses if the network was just compacted or rounded, or if a stage and
    with it a cycle of the learning rate begins. If the radius grew in the last epoch, only the loss
    of that epoch counts, because the loss rises with the radius.
    """
    if progress.epoch in plan.stages[1:] or (progress.epoch == plan.freeze_epoch and plan.reinit):
        return progress.loss_record.restarted
    if progress.epoch in (plan.freeze_epoch, plan.quantize_epoch):
        return progress.loss_record.after_compaction
    grew = 0 <= (progress.epoch - 1) * plan.steps_per_epoch < plan.epsilon_steps
    return progress.loss_record.for_larger_radius if grew else progress.loss_record


def copy_of(progress: Progress) -> Progress:
    """Returns a copy of a state, because training donates the buffers of the state it is given.

    The defense's memory of the images is left out, because it may be large. After a rollback it is
    initialised again.
    """
    state = dataclasses.replace(progress.state, memory=None)
    return dataclasses.replace(progress, state=_copied(state))


@jax.jit
def _copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def check_alarm(
    recipe: Recipe,
    network: Callable,
    key: jax.Array,
    seen: tuple[jax.Array, jax.Array, jax.Array],
    reporter: Reporter,
    state: TrainState,
    record: AccuracyRecord,
) -> AccuracyRecord:
    """Checks an alarm of the guard: attacks the network on more images than a probe uses.

    Args:
        recipe, network, key: of the run.
        seen: training images, their labels and indices, as for `probe_state`.
        reporter: is told of a false alarm.
        state: after the segment that raised the alarm, or one segment later.
        record: the guard's record of accuracies.

    Returns:
        The record with the new accuracies. It is alarming only if they confirm the alarm.
    """
    found = jax.device_get(probe_state(recipe, network, key, state, *seen))
    record = record.after_check(float(found["probe_pgd"]), float(found["probe_trained"]))
    if not record.alarming:
        reporter.note(
            f"false alarm of the guard: accuracy is {record.pgd:.1%} under PGD on {len(seen[0])} "
            f"training images, {record.trained:.1%} under the training attack"
        )
    return record


def roll_back(
    setup: Setup, healthy: Progress, now: Progress, reporter: Reporter
) -> Progress | None:
    """Returns the last sound state with a changed setting, to continue from after an alarm.

    Args:
        setup: of the run.
        healthy: the last sound state.
        now: the run after an epoch. Its time and passes stay counted.
        reporter: is told of the rollback.

    Returns:
        None if there is no alarm, or no setting left to change. Otherwise it shares the arrays of
        `healthy`; they are not copied.
    """
    stronger, clip = now.defense.stronger, stronger_clipping(now.clip)
    if now.accuracy_record.alarming:
        assert stronger is not None, "a defense without a stronger one is not probed"
        return _with_stronger_defense(healthy, now, stronger, reporter)
    if now.loss_record.alarming and clip:
        return _with_clipping(setup, healthy, now, clip, reporter)
    if now.loss_record.alarming:
        reporter.note(
            f"loss rose from {now.loss_record.lowest:.3g} to {now.loss_record.last:.3g} although "
            f"gradients are clipped to norm {now.clip:g}: a smaller --learning-rate may train "
            f"better"
        )
    return None


def _with_stronger_defense(
    healthy: Progress, now: Progress, defense: Choice, reporter: Reporter
) -> Progress:
    """Rolls back after catastrophic overfitting, with a stronger defense."""
    found = now.accuracy_record
    reporter.note(
        f"catastrophic overfitting in epoch {now.epoch}: accuracy on training images is "
        f"{found.trained:.1%} under {now.defense} and {found.pgd:.1%} under PGD; rolling "
        f"back to the end of epoch {healthy.epoch}, going on with {defense}"
    )
    event = {
        "epoch": now.epoch, "back_to": healthy.epoch, "trained": found.trained,
        "pgd": found.pgd, "from": list(now.defense), "to": list(defense),
    }  # fmt: skip
    # Accuracies and losses under the new attack cannot be compared with those under the old one.
    return dataclasses.replace(
        _rolled_back(healthy, now, event),
        defense=defense,
        accuracy_record=AccuracyRecord(healthy.accuracy_record.chance),
        loss_record=healthy.loss_record.restarted,
    )


def _with_clipping(
    setup: Setup, healthy: Progress, now: Progress, clip: float, reporter: Reporter
) -> Progress:
    """Rolls back after divergence, with gradient clipping."""
    loss, lowest = now.loss_record.last, now.loss_record.lowest
    reporter.note(
        f"training diverged in epoch {now.epoch}: loss rose from {lowest:.3g} to {loss:.3g}; "
        f"rolling back to the end of epoch {healthy.epoch}, going on with gradients no longer than "
        f"{clip:g}"
    )
    event = {
        "epoch": now.epoch, "back_to": healthy.epoch, "lowest": lowest,
        "loss": loss if math.isfinite(loss) else None, "clip": clip,
    }  # fmt: skip
    fresh = jax.jit(lambda key: memory_of(setup, defenses.build(now.defense, setup.config), key))
    memory = fresh(prng.key(setup.config.seed))
    memory = parallel.place(memory, parallel.replicated(setup.mesh))
    state = dataclasses.replace(healthy.state, memory=memory)
    return dataclasses.replace(_rolled_back(healthy, now, event), clip=clip, state=state)


def _rolled_back(healthy: Progress, now: Progress, event: dict[str, Any]) -> Progress:
    return dataclasses.replace(
        healthy,
        seconds=now.seconds,
        passes=now.passes,
        images=now.images,
        rollbacks=(*now.rollbacks, event),
    )
