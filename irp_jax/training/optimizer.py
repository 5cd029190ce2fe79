"""The optimiser of {"weights", "masks"}: SGD for the weights, the method's rule for the masks."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax

from irp_jax.config import Config
from irp_jax.graph import ChannelGraph
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import Plan


def partitioned(
    weights: optax.GradientTransformation, masks: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Combines two transformations, one for each half of the parameter tree.

    Args:
        weights: applied to params["weights"].
        masks: applied to params["masks"].
    """
    return optax.partition(
        {"weights": _on("weights", weights), "masks": _on("masks", masks)},
        {"weights": "weights", "masks": "masks"},
    )


def _on(half: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies `inner` to one half of the tree and passes the other half through."""

    def init(params):
        return inner.init(params[half])

    def update(updates, state, params=None):
        new, state = inner.update(updates[half], state, None if params is None else params[half])
        return {**updates, half: new}, state

    return optax.GradientTransformation(init, update)


def one_cycle(peak: float, steps: int, warm_up: float = 0.4) -> optax.Schedule:
    """Returns a linear schedule 0 -> `peak` -> 0 with the peak at a fraction `warm_up` of steps.

    It is the cyclic schedule of Wong, Rice & Kolter (2020, section 5). Their code has the peak at
    two fifths for MNIST, as here, and at half for CIFAR-10.
    """
    turn = max(1, round(warm_up * steps))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, turn),
            optax.linear_schedule(peak, 0.0, max(1, steps - turn)),
        ],
        [turn],
    )


def cosine(peak: float, steps: int) -> optax.Schedule:
    """Returns a half cosine from `peak` to 0 (Loshchilov & Hutter 2017, equation 5)."""

    # The schedule of optax divides an integer by a float, which strict type promotion forbids.
    def rate(step):
        return 0.5 * peak * (1.0 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)))

    return rate


def piecewise(peak: float, steps: int) -> optax.Schedule:
    """Returns `peak`, a tenth of it from half of the steps on, a hundredth from three quarters on.

    It is the piecewise decay of Rice, Wong & Kolter (2020, section 3).
    """
    return optax.piecewise_constant_schedule(
        peak, {max(1, steps // 2): 0.1, max(2, steps * 3 // 4): 0.1}
    )


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "cyclic": one_cycle,
    "cosine": cosine,
    "piecewise": piecewise,
}
"""Name on the command line -> function (peak, steps) -> schedule of the learning rate."""


def restarted(
    schedule: Callable[[float, int], optax.Schedule],
    peak: float,
    starts: Sequence[int],
    stop: int,
    later: float = 1.0,
) -> optax.Schedule:
    """Returns a schedule that starts again with each stage of a run.

    Args:
        schedule: of one stage, from `SCHEDULES`.
        peak: of the first stage.
        starts: first step of each stage, ascending; the first is 0.
        stop: number of steps of the run.
        later: peak of the later stages as a multiple of the first one.
    """
    lengths = [b - a for a, b in zip(starts, [*starts[1:], stop], strict=True)]
    peaks = [peak, *[peak * later] * (len(lengths) - 1)]
    cycles = [schedule(top, steps) for top, steps in zip(peaks, lengths, strict=True)]
    return optax.join_schedules(cycles, list(starts[1:]))


def build(
    config: Config, plan: Plan, graph: ChannelGraph, frozen: bool
) -> optax.GradientTransformation:
    """Returns SGD with momentum for the weights. Masks follow the method's rule until frozen."""
    method = METHODS[config.method]
    starts = [epoch * plan.steps_per_epoch for epoch in plan.stages]
    schedule = SCHEDULES[config.schedule]
    rate = restarted(schedule, config.learning_rate, starts, plan.steps, config.restart_rate)
    weights = optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.identity() if frozen else method.pull(config, plan, graph),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, momentum=0.9),
    )
    rule = optax.set_to_zero() if frozen else method.rule(config, plan, graph)
    return partitioned(weights, rule)
