"""A table of latencies for the terminal: whole networks, predicted and measured."""

import numpy as np
from rich.table import Table

from irp_jax.pruning.latency_table import LatencyTable


def check_table(table: LatencyTable) -> Table:
    """Returns a table of the whole networks that were measured besides the layers."""
    shown = Table(title="whole networks: latency of one image, ms")
    for title in ("channels", "predicted", "measured", "difference", "fitted"):
        shown.add_column(title, justify="left" if title == "channels" else "right")
    for row in table.checks:
        predicted, measured = row["predicted"], row["measured"]
        shown.add_row(
            row["network"], f"{predicted / 1e6:.3f}", f"{measured / 1e6:.3f}",
            f"{predicted / measured - 1:+.1%}", "yes" if row["fitted"] else "no",
        )  # fmt: skip
    return shown


def summary(table: LatencyTable) -> list[str]:
    """Returns lines: what was measured where, and how far predictions are off."""
    off = [abs(row["predicted"] / row["measured"] - 1) for row in table.checks if not row["fitted"]]
    measured = sum(entry.nanoseconds.size for entry in table.layers)
    error = f"{np.median(off):.1%}, at most {max(off):.1%}" if off else "unknown"
    return [
        f"{measured} layers of {table.model}, {table.runtime} {table.runtime_version} with "
        f"{table.threads} thread{'s' * (table.threads != 1)} on {table.device}",
        f"difference for networks that the constants were not fitted to: median {error}",
    ]
