"""Measures the latency of exported files. Several files are timed in turns."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from irp_jax.export.artifact import Artifact

WARM_UP = 3
"""Number of rounds before the first one that is timed."""


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
        (name, batch): (each, each.in_layout(images[np.arange(batch) % len(images)]))
        for batch in batches
        for name, each in artifacts.items()
    }
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for number in range(-WARM_UP, rounds):
        for key, (each, given) in runs.items():
            each.run(given)  # untimed: the caches still hold data of the previous file
            began = time.perf_counter()
            each.run(given)
            if number >= 0:
                taken[key].append(1e3 * (time.perf_counter() - began))
    rows = []
    for (name, batch), times in taken.items():
        low, median, high = np.percentile(times, (25, 50, 75))
        rows.append(
            {"network": name, "batch": batch, "median_ms": round(float(median), 4),
             "low_ms": round(float(low), 4), "high_ms": round(float(high), 4)}
        )  # fmt: skip
    return rows
