"""AutoAttack here and in its authors' PyTorch code: the same weights, images, radius and lists.

    python -m benchmarks.attacks --official=PATH --checkpoints=runs/a,runs/b --out=results/x.json

PATH is a clone of github.com/fra31/auto-attack, which is not on PyPI. The networks are copied to
PyTorch first and must agree in their logits. Both sides run the same attacks in the same order on
what stands after those before, with as many threads as there are cores, one side after the other
for each network.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

from benchmarks import torch_resnet
from irp_jax import attacks, data, files, models, network, parallel
from irp_jax.cli.run import main, parse, publishable
from irp_jax.errors import UserError

AGREEMENT = 1e-4
"""Largest difference of logits that still counts as the same network."""


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
    data_dir: str | None = None
    """Where the data set lies."""
    out: str = "results/bench_attacks.json"
    """Where the figures go."""


def bench(arguments: list[str]) -> None:
    """Attacks every network twice, prints a table, and writes it."""
    options = parse(Options, arguments, "python -m benchmarks.attacks")
    if not (Path(options.official) / "autoattack").is_dir():
        raise UserError(
            f"no package autoattack in {options.official}: clone github.com/fra31/auto-attack"
        )
    for name in ("images", "queries", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    torch.set_num_threads(parallel.cores())
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
            "environment": parallel.describe() | {"torch": torch.__version__},
            "command": publishable("python -m benchmarks.attacks", arguments),
            "commit": commit,
        }
        files.write_json(Path(options.out), report)
    console.print(f"written to {options.out}")


def _compare(options: Options, checkpoint: str, console: Console) -> dict[str, Any]:
    net = network.load(checkpoint, console.print)
    images, labels = _images(options, net)
    ours = Partial(net.apply, net.variables)
    twin = _twin(net)
    logits = attacks.predict(ours, images, batch_size=options.batch_size)
    apart = float(np.abs(torch_resnet.logits(twin, images) - logits).max())
    if apart > AGREEMENT:
        raise UserError(f"the PyTorch copy of {checkpoint} differs by {apart:.2g} in its logits")
    epsilon = net.config.epsilon if options.epsilon is None else options.epsilon
    console.print(f"{checkpoint}: {len(images)} images, epsilon {epsilon:.4g}; irp_jax")
    listed = [
        attacks.Square(steps=options.queries) if attack.name == "square" else attack
        for attack in attacks.published("standard", "linf")
    ]
    devices = parallel.mesh(parallel.usable_devices(options.batch_size))
    began = time.perf_counter()
    report = attacks.assess(
        Partial(net.apply, jax.device_put(net.variables, parallel.replicated(devices))),
        images, labels, listed, threat=attacks.linf(epsilon),
        batch_size=options.batch_size, mesh=devices,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    console.print(f"{checkpoint}: the official code")
    theirs = _official(options, twin, images, labels, epsilon)
    return {
        "checkpoint": Path(checkpoint).name,
        "model": net.config.model,
        "dataset": net.config.dataset,
        "macs_ratio": net.cost["macs_ratio"],
        "images": len(images),
        "epsilon": epsilon,
        "logits_apart": apart,
        "natural": report.natural,
        "irp_jax": {
            "accuracy": dict(report.accuracy), "seconds": dict(report.seconds), "total": seconds,
        },
        "official": theirs,
    }  # fmt: skip


def _images(options: Options, net: network.Network) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W, C) float32 in [0, 1] and (N,) int32."""
    held = data.load(
        net.config.dataset, data_dir=options.data_dir or net.config.data_dir,
        validation_fraction=0.0,
    )  # fmt: skip
    images = np.concatenate([held.test.images, held.train.images])
    labels = np.concatenate([held.test.labels, held.train.labels])
    count = len(held.test.images) if options.images is None else options.images
    return images[:count].astype(np.float32) / np.float32(255), labels[:count].astype(np.int32)


def _twin(net: network.Network) -> torch_resnet.ResNet:
    model = models.build(net.config.model, len(net.class_names), net.config.width)
    if not isinstance(model, models.ResNet):
        raise UserError(f"there is no PyTorch twin of {net.config.model}: choose a resnet")
    variables = jax.device_get(net.variables)
    return torch_resnet.build(
        model.blocks, model.widths, variables["params"], statistics=variables["batch_stats"]
    )


def _official(
    options: Options, twin: torch.nn.Module, images: np.ndarray, labels: np.ndarray, epsilon: float
) -> dict[str, Any]:
    """Accuracy after each attack of the official standard list, and seconds."""
    if options.official not in sys.path:
        sys.path.insert(0, options.official)
    from autoattack import AutoAttack

    x = torch_resnet.channels_last(torch.from_numpy(images))
    y = torch.from_numpy(labels.astype(np.int64))
    rival = AutoAttack(twin, norm="Linf", eps=epsilon, seed=0, verbose=False, device="cpu")
    rival.square.n_queries = options.queries
    accuracy, seconds = {}, {}
    began = time.perf_counter()
    standing = torch.arange(len(x))
    with torch.no_grad():
        standing = standing[twin(x).argmax(1) == y]
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        at = time.perf_counter()
        if len(standing):
            rival.attacks_to_run = [name]
            found = rival.run_standard_evaluation(x[standing], y[standing], bs=options.batch_size)
            with torch.no_grad():
                standing = standing[twin(found).argmax(1) == y[standing]]
        accuracy[name] = len(standing) / len(x)
        seconds[name] = time.perf_counter() - at
    return {"accuracy": accuracy, "seconds": seconds, "total": time.perf_counter() - began}


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each attack on each network."""
    table = Table(title="AutoAttack standard, L-inf: irp_jax and the official PyTorch code")
    for title in ("network", "after", "irp_jax", "official", "points apart", "s", "s official"):
        table.add_column(title, justify="left" if title in ("network", "after") else "right")
    for row in rows:
        ours, theirs = row["irp_jax"], row["official"]
        for name, accuracy in ours["accuracy"].items():
            other = theirs["accuracy"][name]
            table.add_row(
                row["checkpoint"], name, f"{accuracy:.2%}", f"{other:.2%}",
                f"{100 * (accuracy - other):+.2f}", f"{ours['seconds'][name]:.0f}",
                f"{theirs['seconds'][name]:.0f}",
            )  # fmt: skip
        table.add_row(
            row["checkpoint"], "all", "", "", "", f"{ours['total']:.0f}", f"{theirs['total']:.0f}"
        )
    console.print(table)


if __name__ == "__main__":
    main(bench)
