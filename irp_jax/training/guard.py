"""The guard: which states are sound, and where a run goes from the last of them after an alarm."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax import draws, parallel
from irp_jax.training import defenses
from irp_jax.training.defenses import Choice
from irp_jax.training.divergence import Descent, steadier
from irp_jax.training.overfitting import PATIENCE, Health
from irp_jax.training.plan import Plan
from irp_jax.training.progress import Progress, Reporter, Setup, memory_of
from irp_jax.training.state import TrainState
from irp_jax.training.step import Recipe, probe_state


def is_sound(progress: Progress, healthy: Progress | None) -> bool:
    """Whether a run is in a state to go back to; `healthy` is the last one that was.

    What a run begins with or resumes from is one. So is a doubtful one when there has been no other
    for some epochs, since a collapse takes less; but not on the way to guessing, which may be long,
    or there, as long as there is a way to train on from before.
    """
    health, descent = progress.health, progress.descent
    if healthy is None or not (health.suspicious or descent.suspicious):
        return True
    if descent.suspicious and steadier(progress.clip) and (descent.stuck or not descent.falling):
        return False
    return progress.epoch >= healthy.epoch + PATIENCE


def descent_before(plan: Plan, progress: Progress) -> Descent:
    """What the next epoch's loss is compared with.

    With none where the network has just been cut, or a stage has begun and the learning rate with
    it. With the last epoch's alone where the radius grew in that, since loss rises with it.
    """
    if progress.epoch in plan.stages[1:] or (progress.epoch == plan.freeze_epoch and plan.reinit):
        return progress.descent.afresh
    if progress.epoch == plan.freeze_epoch:
        return progress.descent.of_cut
    grew = 0 <= (progress.epoch - 1) * plan.steps_per_epoch < plan.epsilon_steps
    return progress.descent.of_last if grew else progress.descent


def copy_of(progress: Progress) -> Progress:
    """A copy to go back to, since training donates the state it is given.

    Without what the defense remembers of the images, which may be large: it is begun anew.
    """
    state = dataclasses.replace(progress.state, memory=None)
    return dataclasses.replace(progress, state=_copied(state))


@jax.jit
def _copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def second_look(
    recipe: Recipe,
    network: Callable,
    key: jax.Array,
    seen: tuple[jax.Array, jax.Array, jax.Array],
    reporter: Reporter,
    state: TrainState,
    health: Health,
) -> Health:
    """Looks into an alarm: the network is attacked on more images than a probe has.

    Args:
        recipe, network, key: of the run.
        seen: training images, their labels and indices, as for `probe_state`.
        reporter: told of a false alarm.
        state: the present one, after the segment that raised the alarm or the one behind it.
        health: what is remembered now.
    """
    found = jax.device_get(probe_state(recipe, network, key, state, *seen))
    health = health.after_second_look(float(found["probe_pgd"]), float(found["probe_trained"]))
    if not health.alarming:
        reporter.note(
            f"PGD accuracy seemed to collapse and did not: {health.pgd:.1%} of {len(seen[0])} "
            f"training images, {health.trained:.1%} under the attack trained on"
        )
    return health


def roll_back(
    setup: Setup, healthy: Progress, now: Progress, reporter: Reporter
) -> Progress | None:
    """Where to go on after an alarm: from the last sound state, by other means.

    Args:
        setup: of the run.
        healthy: the last sound state.
        now: the run after an epoch, whose time and passes are spent all the same.
        reporter: is told.

    Returns:
        None where there is no alarm, or nothing else to go on with. The state is that of
        `healthy`, not a copy.
    """
    stronger, clip = now.defense.stronger, steadier(now.clip)
    if now.health.alarming:
        assert stronger is not None, "a defense with nothing stronger is not probed"
        return _strengthened(healthy, now, stronger, reporter)
    if now.descent.alarming and clip:
        return _steadied(setup, healthy, now, clip, reporter)
    if now.descent.alarming:
        reporter.note(
            f"loss rose from {now.descent.lowest:.3g} to {now.descent.last:.3g} with gradients no "
            f"longer than {now.clip:g}: a smaller --learning-rate may train better"
        )
    return None


def _strengthened(
    healthy: Progress, now: Progress, defense: Choice, reporter: Reporter
) -> Progress:
    """After catastrophic overfitting: with a stronger defense."""
    reporter.note(
        f"catastrophic overfitting in epoch {now.epoch}: {now.health.trained:.1%} of the training "
        f"images right under {now.defense}, {now.health.pgd:.1%} under PGD; back to the end of "
        f"epoch {healthy.epoch}, going on with {defense}"
    )
    event = {
        "epoch": now.epoch, "back_to": healthy.epoch, "trained": now.health.trained,
        "pgd": now.health.pgd, "from": list(now.defense), "to": list(defense),
    }  # fmt: skip
    # Neither accuracies nor losses under another attack are compared with those under this one.
    health, descent = Health(healthy.health.chance), healthy.descent.afresh
    back = _back(healthy, now, event)
    return dataclasses.replace(back, defense=defense, health=health, descent=descent)


def _steadied(
    setup: Setup, healthy: Progress, now: Progress, clip: float, reporter: Reporter
) -> Progress:
    """After training diverged: with gradients cut short."""
    loss, lowest = now.descent.last, now.descent.lowest
    reporter.note(
        f"training diverged in epoch {now.epoch}: loss rose from {lowest:.3g} to {loss:.3g}; back "
        f"to the end of epoch {healthy.epoch}, going on with gradients no longer than {clip:g}"
    )
    event = {
        "epoch": now.epoch, "back_to": healthy.epoch, "lowest": lowest,
        "loss": loss if math.isfinite(loss) else None, "clip": clip,
    }  # fmt: skip
    fresh = jax.jit(lambda key: memory_of(setup, defenses.build(now.defense, setup.config), key))
    memory = fresh(draws.key(setup.config.seed))
    memory = parallel.place(memory, parallel.replicated(setup.mesh))
    state = dataclasses.replace(healthy.state, memory=memory)
    return dataclasses.replace(_back(healthy, now, event), clip=clip, state=state)


def _back(healthy: Progress, now: Progress, event: dict[str, Any]) -> Progress:
    return dataclasses.replace(
        healthy,
        seconds=now.seconds,
        passes=now.passes,
        images=now.images,
        rollbacks=(*now.rollbacks, event),
    )
