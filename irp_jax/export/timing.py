"""Measures the latency of exported files. Several files are timed in turns."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from irp_jax.export.artifact import Artifact

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

WARM_UP = 3
"""Number of rounds before the first one that is timed."""

Key = TypeVar("Key")


def in_turns(
    runs: Mapping[Key, Callable[[], object]],
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Key, list[float]]:
    """Times functions in turns: in every round each runs once uncounted and once counted.

    Other load on the machine then slows all of them alike. If the system tells that another process
    was given the core during a run, that run is left out. Long functions are interrupted more often
    than short ones, so such runs would distort the comparison.

    Args:
        runs: name -> function.
        rounds: number of counted runs of each.
        progress: called after each round with the rounds done and their number.

    Returns:
        Name -> seconds of each counted run that was not interrupted, or of all runs if all were
        interrupted.
    """
    calm: dict[Key, list[float]] = {key: [] for key in runs}
    taken: dict[Key, list[float]] = {key: [] for key in runs}
    for number in range(-WARM_UP, rounds):
        for key, run in runs.items():
            run()  # uncounted: the caches still hold data of the previous function
            before = _interruptions()
            began = time.perf_counter()
            run()
            seconds = time.perf_counter() - began
            if number >= 0:
                taken[key].append(seconds)
                if _interruptions() == before:
                    calm[key].append(seconds)
        progress(number + 1 + WARM_UP, rounds + WARM_UP)
    return {key: calm[key] or taken[key] for key in runs}


def _interruptions() -> int:
    """Returns how often another process was given a core of this one; 0 where it is not known."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def measured(
    artifacts: Mapping[str, Artifact],
    images: np.ndarray,
    *,
    batches: tuple[int, ...] = (1, 64),
    rounds: int = 50,
) -> list[dict[str, Any]]:
    """Measures the latency of several files on the same images.

    In each round, every file runs at every batch size: once untimed, then once timed. So other
    load on the machine slows all files alike.

    Args:
        artifacts: name -> file.
        images: (N, H, W, C) float32 in [0, 1]. They are repeated if a batch needs more.
        batches: batch sizes.
        rounds: number of timed rounds.

    Returns:
        A row for each file and batch size: `network`, `batch`, `median_ms`, and the quartiles
        `low_ms` and `high_ms`, in milliseconds for a batch.
    """
    runs = {
        (name, batch): functools.partial(
            each.run, each.in_layout(images[np.arange(batch) % len(images)])
        )
        for batch in batches
        for name, each in artifacts.items()
    }
    rows = []
    for (name, batch), times in in_turns(runs, rounds).items():
        low, median, high = 1e3 * np.percentile(times, (25, 50, 75))
        rows.append(
            {"network": name, "batch": batch, "median_ms": round(float(median), 4),
             "low_ms": round(float(low), 4), "high_ms": round(float(high), 4)}
        )  # fmt: skip
    return rows
