"""The table of bin/bench train: the time of a training step here and in PyTorch."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

TITLES = {
    "dense": "irp_jax dense",
    "channel": "irp_jax masked (channel)",
    "weight": "irp_jax masked (weight)",
    "compact": "irp_jax compact",
    "torch": "PyTorch dense",
    "torch_masked": "PyTorch masked",
    "torch_graph": "PyTorch dense, CUDA graph",
}


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Returns the median of round-by-round ratios. Other load in a round affects both times."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def show(report: dict[str, Any], console: Console) -> None:
    """Prints the table, the overhead of masks and the speedup of whole runs."""
    environment, batch = report["environment"], report["batch_size"]
    on_cpu = environment["platform"] == "cpu"
    where = f"{environment['cpu_count']} cores" if on_cpu else environment["device"]
    digits = 0 if on_cpu else 2
    table = Table(title=f"Fast AT step, {report['model']}, batch {batch}, 32 x 32 x 3, {where}")
    rival = TITLES[report.get("rival", "torch")]
    for title in ("", "ms/step", "CPU ms/step", "img/s", "of dense", f"x {rival}"):
        table.add_column(title, justify="right" if title else "left")
    seconds, speedup = report["seconds_per_step"], report["speedup"]
    for name, times in seconds.items():
        middle = statistics.median(times)
        of_dense = f"{ratio(times, seconds['dense']):.3f}"
        cpu = statistics.median(report["cpu_seconds_per_step"][name])
        cells = [f"{value * 1e3:.{digits}f}" for value in (middle, cpu)]
        cells += [f"{batch / middle:.0f}", of_dense]
        title = TITLES[name] + (
            f" ({report['macs_ratio']:.3f} of MACs)" if name == "compact" else ""
        )
        table.add_row(title, *cells, f"{speedup[name]:.2f}" if name in speedup else "-")
    console.print(table)
    overhead = ", ".join(f"{k} {v - 1:+.1%}" for k, v in report["mask_overhead"].items())
    console.print(f"masks cost: {overhead} of a dense step")
    if "predicted_run" in speedup:
        console.print(
            f"whole run, {report['freeze_fraction']:.0%} of it masked and the rest compact: "
            f"{speedup['predicted_run']:.2f} times as fast as {rival}"
        )
    if "measured_run" in speedup:
        console.print(f"the run given: {speedup['measured_run']:.2f} times as fast as {rival}")
