"""The compiled segments of one epoch, and the loss that the guard reads from them."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.training.overfitting import AccuracyRecord
from irp_jax.training.progress import Reporter
from irp_jax.training.state import TrainState
from irp_jax.training.step import Metrics


class Begun(NamedTuple):
    """What was done of an epoch.

    Attributes:
        state: after the segments done.
        record: of the accuracies in `fetched`.
        fetched: metrics of each segment but the last, on the host.
        pending: metrics of the last segment, which may be on the devices; None if none is done.
    """

    state: TrainState
    record: AccuracyRecord
    fetched: tuple[Metrics, ...] = ()
    pending: Metrics | None = None

    @property
    def segments(self) -> int:
        """The number of segments done."""
        return len(self.fetched) + (self.pending is not None)


class Trained(NamedTuple):
    """The result of an epoch. The metrics of its steps are on the host, each leaf (steps,)."""

    state: TrainState
    metrics: Metrics
    record: AccuracyRecord


def run_segments(
    send: Callable,
    begun: Begun,
    batches: np.ndarray,
    ratio: float | None,
    reporter: Reporter,
    check_alarm: Callable[[TrainState, AccuracyRecord], AccuracyRecord],
    between: Callable[[Begun], None] = lambda begun: None,
) -> Trained:
    """Runs the segments of one epoch. Stops early if the check confirms an alarm.

    Args:
        send: (state, batches of a segment) -> state, metrics.
        begun: what was done of the epoch.
        batches: (segments, steps, N) int32, of the whole epoch.
        ratio: share of the cost that is left; None before masks are frozen.
        reporter: is told of each segment.
        check_alarm: checks an alarm: (state, record of accuracies) -> new record.
        between: called after each segment. It may save what was done.
    """
    state, record, _, pending = begun
    fetched = list(begun.fetched)
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

    confirmed = False
    for segment in batches[begun.segments :]:
        if record.alarming:
            record = check_alarm(state, record)
            confirmed = record.alarming
            if confirmed:
                break
        state, metrics = send(state, batches=segment)
        if pending is not None:  # one segment late, so that the device does not wait for the host
            fetch(pending)
        pending = metrics
        between(Begun(state, record, tuple(fetched), pending))
    assert pending is not None
    fetch(pending)
    if record.alarming and not confirmed:
        record = check_alarm(state, record)
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *fetched)
    return Trained(state, metrics, record)


def epoch_loss(trained: Trained, steps: int) -> float:
    """Returns the epoch's loss for the guard.

    It is the mean over the epoch or over its last segment, whichever is larger. It is the
    cross-entropy alone, because the other terms of some defenses are zero for a network
    that guesses. It is NaN if a weight or a loss is not finite. The weights are checked, too,
    because the last loss was computed before the last update.
    """
    if not is_finite(trained.state) or not np.isfinite(trained.metrics["loss"]).all():
        return math.nan
    losses = trained.metrics["cross_entropy"]
    return float(np.max([losses.mean(), losses[-steps:].mean()]))


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
    """Returns whether all weights and batch statistics are finite, () bool."""
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def _last(metrics: Metrics, name: str) -> float:
    return float(np.ravel(metrics[name])[-1])
