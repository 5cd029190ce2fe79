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


class Trained(NamedTuple):
    """The result of an epoch. The metrics of its steps are on the host, each leaf (steps,)."""

    state: TrainState
    metrics: Metrics
    record: AccuracyRecord


def run_segments(
    send: Callable,
    state: TrainState,
    record: AccuracyRecord,
    batches: np.ndarray,
    ratio: float | None,
    reporter: Reporter,
    check_alarm: Callable[[TrainState, AccuracyRecord], AccuracyRecord],
) -> Trained:
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
