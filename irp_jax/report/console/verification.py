"""The table of `bin/export verify`."""

from typing import Any

from rich.table import Table


def verify_table(results: dict[str, Any]) -> Table:
    """Returns the table that compares a file with its network.

    Args:
        results: the result of `export.verify`, and "model", the name of the network.
    """
    artifact, pgd = results["artifact"], results["pgd"]
    table = Table(
        title=f"{results['model']} as {artifact['format']}, {results['images']} images, "
        f"epsilon {results['epsilon']:.4g}"
    )
    for title in ("", "network", "file"):
        table.add_column(title, justify="right" if title else "left")

    def both(title: str, row: dict[str, float]) -> None:
        network = f"{row['network']:.2%}" if "network" in row else ""
        table.add_row(title, network, f"{row['file']:.2%}")

    both("natural accuracy", results["natural"])
    both(f"PGD-{pgd['steps']} on the network", pgd)
    if "square" in results:
        both(f"Square-{results['square']['queries']} on the file", results["square"])
    table.add_row("same predictions", "", f"{results['agreement']:.2%}")
    table.add_row("largest difference of logits", "", f"{results['max_difference']:.1e}")
    if "emulation" in results:
        emulation = results["emulation"]
        pgd = emulation["pgd"]
        table.add_section()
        table.add_row("", "emulation", "file")
        table.add_row(
            "natural accuracy",
            f"{emulation['natural']['emulation']:.2%}",
            f"{emulation['natural']['file']:.2%}",
        )
        table.add_row(
            f"PGD-{pgd['steps']} on the emulation", f"{pgd['emulation']:.2%}",
            f"{pgd['file']:.2%}",
        )  # fmt: skip
        table.add_row("same predictions", "", f"{emulation['agreement']:.2%}")
    if "latency" not in results:
        table.add_row("size", "", _size(artifact["bytes"]))
        return table
    table.add_section()
    table.add_row("", "dense", "file")
    dense = artifact.get("dense_bytes")
    table.add_row("size", _size(dense) if dense else "", _size(artifact["bytes"]))
    if "float32_bytes" in artifact:
        table.add_row("size in float32", "", _size(artifact["float32_bytes"]))
    rows = {(row["network"], row["batch"]): row for row in results["latency"]}
    threads = results["threads"]
    for batch in dict.fromkeys(batch for _, batch in rows):
        times = [_time(rows.get((name, batch))) for name in ("dense", "compact")]
        title = f"latency, batch {batch}, {threads} thread{'s' * (threads != 1)}, ms (quartiles)"
        table.add_row(title, *times)
        if ("float32", batch) in rows:
            table.add_row(f"latency, batch {batch}, in float32", "", _time(rows["float32", batch]))
    return table


def _size(count: int) -> str:
    return f"{count / 1e3:,.0f} kB"


def _time(row: dict[str, Any] | None) -> str:
    return "" if row is None else (
        f"{row['median_ms']:.2f} ({row['low_ms']:.2f} to {row['high_ms']:.2f})"
    )  # fmt: skip
