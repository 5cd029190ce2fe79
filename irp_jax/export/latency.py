"""How long files take for a batch: several beside each other, in turns."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from irp_jax.export.artifact import Artifact

WARM = 3
"""Runs before anything is counted."""


def measured(
    artifacts: Mapping[str, Artifact],
    images: np.ndarray,
    *,
    batches: tuple[int, ...] = (1, 64),
    rounds: int = 50,
) -> list[dict[str, Any]]:
    """Times files on the same images.

    In every round each file runs at each batch size, once uncounted and once counted, so that
    what else the machine does slows all of them alike.

    Args:
        artifacts: name -> file.
        images: (N, H, W, C) float32 in [0, 1], repeated as needed.
        batches: images given at once.
        rounds: times each is run.

    Returns:
        A row for each file and batch size: `network`, `batch`, `median_ms`, and the quartiles
        `low_ms` and `high_ms`.
    """
    runs = {
        (name, batch): (each, each.arranged(images[np.arange(batch) % len(images)]))
        for batch in batches
        for name, each in artifacts.items()
    }
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for number in range(-WARM, rounds):
        for key, (each, given) in runs.items():
            each.run(given)  # what ran before has filled the caches with its own
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
