"""AutoAttack here and in its authors' PyTorch code: the same weights, images, radius and lists.

    python -m benchmarks.autoattack --official=PATH --checkpoints=runs/a,runs/b --out=results/x.json

PATH is a clone of github.com/fra31/auto-attack, which is not on PyPI. The networks are copied to
PyTorch first and must agree in their logits. All sides run the same attacks in the same order on
what stands after those before, on the same device and in float32: with as many threads as there
are cores, or on a GPU, where larger batches pay (--batch-size). The images are cut into
slices; the sides take turns, in an order that is turned around from slice to slice, so that a
machine whose speed drifts favours nobody. Here the first slice pays for compilation.
"""

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import side_by_side
from benchmarks.side_by_side import Found, Side
from irp_jax import attacks, files
from irp_jax.benchmark import torch_device
from irp_jax.cli.common import main, publishable
from irp_jax.cli.flags import parse
from irp_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compare AutoAttack with the official one on networks trained here."""

    official: str
    """Folder that holds the official code's package `autoattack`."""
    checkpoints: str
    """Runs, separated by commas; residual networks only."""
    epsilon: float | None = None
    """L-inf radius. Default: what each network was trained for."""
    images: int | None = None
    """How many; test images first, then training images. Default: the test split."""
    queries: int = 5000
    """Of Square, on both sides."""
    batch_size: int = 256
    """Images attacked at once, on both sides."""
    slices: int = 2
    """How many parts the images are attacked in, the sides taking turns."""
    masked: bool = False
    """Let the official code attack the network as tools that only mask leave it: the arrays of the
    dense one, with zeros."""
    data_dir: str | None = None
    """Where the data set lies."""
    out: str = "results/bench_autoattack.json"
    """Where the figures go."""


def bench(arguments: list[str]) -> None:
    """Attacks every network twice, prints a table, and writes it."""
    options = parse(Options, arguments, "python -m benchmarks.autoattack")
    if not (Path(options.official) / "autoattack").is_dir():
        raise UserError(
            f"no package autoattack in {options.official}: clone github.com/fra31/auto-attack"
        )
    for name in ("images", "queries", "batch_size", "slices"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    side_by_side.prepare()
    console = Console(highlight=False, soft_wrap=True)
    rows: list[dict[str, Any]] = []
    commit = files.commit()
    for checkpoint in options.checkpoints.split(","):
        rows.append(_compare(options, checkpoint, console))
        show(rows, console)
        report = {  # after each network: a kill costs the one under way
            "networks": rows,
            "batch_size": options.batch_size,
            "square_queries": options.queries,
            "environment": side_by_side.environment(),
            "command": publishable("python -m benchmarks.autoattack", arguments),
            "commit": commit,
        }
        files.write_json(Path(options.out), report)
    console.print(f"written to {options.out}")


def _compare(options: Options, checkpoint: str, console: Console) -> dict[str, Any]:
    subject = side_by_side.load(
        checkpoint, images=options.images, epsilon=options.epsilon, data_dir=options.data_dir,
        say=console.print,
    )  # fmt: skip
    listed = [
        attacks.Square(steps=options.queries) if attack.name == "square" else attack
        for attack in attacks.published("standard", "linf")
    ]
    ours = functools.partial(
        side_by_side.evaluate, subject, listed, options.batch_size, sanity_checks=True
    )
    theirs = functools.partial(_official, options, subject.epsilon)
    rival = "official, masked" if options.masked else "official"
    twin = side_by_side.twin(subject, masked=options.masked)
    sides: dict[str, Side] = {"irp_jax": ours, rival: functools.partial(theirs, twin)}
    return side_by_side.compare(subject, sides, options.slices, console.print)


def _official(
    options: Options,
    epsilon: float,
    twin: torch.nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
) -> Found:
    """The official standard list."""
    if options.official not in sys.path:
        sys.path.insert(0, options.official)
    from autoattack import AutoAttack

    began = time.perf_counter()
    x, y = side_by_side.tensors(images, labels)
    device = torch_device.device()
    rival = AutoAttack(twin, norm="Linf", eps=epsilon, seed=0, verbose=False, device=device)
    rival.square.n_queries = options.queries
    left, seconds = {}, {}
    robust = torch.arange(len(x), device=device)
    with torch.no_grad():
        robust = robust[twin(x).argmax(1) == y]
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        at = time.perf_counter()
        if len(robust):
            rival.attacks_to_run = [name]
            found = rival.run_standard_evaluation(x[robust], y[robust], bs=options.batch_size)
            with torch.no_grad():
                robust = robust[twin(found).argmax(1) == y[robust]]
        left[name] = len(robust)
        seconds[name] = time.perf_counter() - at
    total = time.perf_counter() - began
    return Found(images=len(x), robust=left, seconds=seconds, total=total)


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each attack on each network."""
    table = Table(title="AutoAttack standard, L-inf: irp_jax and the official PyTorch code")
    for title in ("network", "after", "irp_jax", "official", "points apart", "s", "s official"):
        table.add_column(title, justify="left" if title in ("network", "after") else "right")
    for row in rows:
        ours, theirs = (row[side] for side in row if side.startswith(("irp_jax", "official")))
        for name, accuracy in ours["accuracy"].items():
            other = theirs["accuracy"][name]
            table.add_row(
                row["checkpoint"], name, f"{accuracy:.2%}", f"{other:.2%}",
                f"{100 * (accuracy - other):+.2f}",
                *(_seconds(side["seconds"].get(name)) for side in (ours, theirs)),
            )  # fmt: skip
        totals = (_seconds(side.get("total")) for side in (ours, theirs))
        table.add_row(row["checkpoint"], "all", "", "", "", *totals)
    console.print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main(bench)
