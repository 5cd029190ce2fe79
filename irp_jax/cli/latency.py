"""bin/latency: measures how long a network's layers take on this machine."""

import dataclasses
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from irp_jax import config as configs
from irp_jax import files, traced
from irp_jax import latency as tables
from irp_jax.cli.common import main
from irp_jax.cli.flags import parse
from irp_jax.config import Config
from irp_jax.export.measure import measure
from irp_jax.report.console.latency import check_table, summary
from irp_jax.report.console.terminal import plain_console
from irp_jax.training.preview import images_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the latency of a network's layers at many numbers of channels, on this machine.

    bin/train --cost=latency --latency-table=FILE then prunes to a share of the measured time.
    """

    out: str
    """The file to write, for instance table.json."""
    runtime: Literal["onnxruntime", "litert", "jax"] = "onnxruntime"
    """What runs the layers: onnxruntime or litert on the processor, or jax on its default device.
    The converter of litert is installed on first use."""
    model: str = "resnet20"
    """Name of a model of this package, or FILE.py:NAME for a network of your own."""
    dataset: str = "cifar10"
    """Data set, PATH.npz or folder whose images and classes the network is for. Nothing is
    downloaded."""
    image_size: int | None = None
    """Height and width of the images of a folder, as in bin/train."""
    width: float = 1.0
    """Factor of every channel count of a built-in model, as in bin/train."""
    activation: str = "relu"
    """Activation of a built-in model, as in bin/train."""
    threads: int | None = None
    """Number of threads (onnxruntime, litert). Default: 1."""
    multiple: int | None = None
    """Files have zero channels up to multiples of this, as bin/export writes them (onnxruntime).
    Default: 4."""
    rounds: int = 100
    """Number of times that each layer is timed."""


def latency(arguments: list[str]) -> None:
    """Writes a table, and shows how well it predicts whole networks."""
    options = parse(Options, arguments, "bin/latency")
    config = Config(
        model=options.model, dataset=options.dataset, width=options.width,
        activation=options.activation, image_size=options.image_size,
    )  # fmt: skip
    configs.check(config)
    files.check_place(Path(options.out))
    shape, classes, _ = images_of(config)
    model = traced.named(config.model, config.width, shape, classes, config.seed, config.activation)
    console = plain_console()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("measuring")
        table = measure(
            model, options.runtime, threads=options.threads, multiple=options.multiple,
            rounds=options.rounds,
            progress=lambda part, done, total: bar.update(
                task, description=part, completed=done, total=total
            ),
        )  # fmt: skip
    tables.save(table, options.out)
    console.print(check_table(table))
    for line in (*summary(table), f"written to {options.out}"):
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    main(latency)
