"""bin/export: a trained network as one file for other runtimes; and the file beside its network."""

import dataclasses
import time
from pathlib import Path
from typing import Literal

from irp_jax import checkpoint, data, files, network, parallel
from irp_jax import export as exporting
from irp_jax.cli.run import main, parse, publishable
from irp_jax.errors import UserError
from irp_jax.export import artifact, onnx
from irp_jax.report.export import verify_table
from irp_jax.report.terminal import plain_console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Write a trained network as one file. `bin/export verify` compares the file with it."""

    checkpoint: str
    """A run's workdir, such as runs/<name>, one checkpoint in it, or a saved network."""
    out: str
    """The file to write, for instance model.onnx."""
    format: Literal["onnx", "stablehlo"] = "onnx"
    """onnx, for onnxruntime and others, or stablehlo, for JAX."""
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    """How images lie in an ONNX file: channels last, or channels first."""
    multiple: int | None = None
    """Zero channels are added up to multiples of this, for speed in onnxruntime; 1 adds none.
    Default: that of the run, which is 4 without a table of latencies."""
    model: str | None = None
    """FILE.py:NAME of a network of your own. Default: what was saved with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Compare an exported file with its network: accuracy, attacks, size and latency."""

    artifact: str
    """The file that bin/export wrote."""
    checkpoint: str
    """The network that it was exported from: a run's workdir, a checkpoint, or a saved network."""
    model: str | None = None
    """FILE.py:NAME of a network of your own. Default: what was saved with it."""
    dataset: str | None = None
    """Another set or PATH.npz to test on. Default: that of the run."""
    data_dir: str | None = None
    """Where the data set lies. Default: as in the run."""
    images: int | None = None
    """Only the first so many test images."""
    epsilon: float | None = None
    """Radius of the attacks in pixels of [0, 1], e.g. 8/255. Default: that of training."""
    steps: int = 10
    """Of PGD on the network."""
    queries: int = 200
    """Of Square on the file; 0 leaves it out."""
    rounds: int = 50
    """Times that each file is run for its latency; 0 leaves it out."""
    threads: int = 1
    """That onnxruntime computes with."""
    seed: int = 0
    """Of every draw."""
    out: str | None = None
    """Also write the figures to this JSON file."""


def export(arguments: list[str]) -> None:
    """Writes a file; or, if the first argument is "verify", prints a table."""
    if arguments[:1] == ["verify"]:
        return _verify(arguments[1:])
    options = parse(Options, arguments, "bin/export")
    exporting.check_asked(Path(options.out), options.format, options.layout)
    console = plain_console()
    net = _with_results(network.load(options.checkpoint, console.print, model=options.model),
                        Path(options.checkpoint))  # fmt: skip
    content = exporting.write(
        net, options.out, options.format, layout=options.layout, multiple=options.multiple,
        model=options.model,
    )  # fmt: skip
    console.print(f"written to {options.out}: {len(content):,} bytes, images {options.layout}")
    return None


def _with_results(net: network.Network, run: Path) -> network.Network:
    """The network with what its run measured, if that is of the same weights."""
    path = run / "results.json"
    results = files.read_json(path) if path.is_file() else None
    if not isinstance(results, dict):
        return net
    if results.get("network_sha256") != checkpoint.digest(net.variables):
        return net
    return dataclasses.replace(net, results=results)


def _verify(arguments: list[str]) -> None:
    options = parse(VerifyOptions, arguments, "bin/export verify")
    if options.images is not None and options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    if options.out is not None:
        files.check_place(Path(options.out))
    console = plain_console()
    file = artifact.load(options.artifact)  # a mistake shows before the images are loaded
    net = network.load(options.checkpoint, console.print, model=options.model)
    exporting.check_network(file, net, options.artifact)
    trained = net.record["trained"]
    there = options.data_dir or trained["data_dir"]
    found = data.load(options.dataset or trained["dataset"], data_dir=there)
    net.check_classes(found)
    images, labels = found.test.images[: options.images], found.test.labels[: options.images]
    began = time.perf_counter()
    report = exporting.verify(
        options.artifact, net, (images, labels), model=options.model, epsilon=options.epsilon,
        steps=options.steps, queries=options.queries, rounds=options.rounds,
        threads=options.threads, seed=options.seed,
    )  # fmt: skip
    results = {
        "model": net.name,
        "dataset": found.name,
        **report,
        "cost": net.cost,
        "seed": options.seed,
        "wall_time_s": round(time.perf_counter() - began, 1),
        "environment": {**parallel.describe(), **onnx.versions()},
        "command": publishable("bin/export verify", arguments),
        "commit": files.commit(),
    }
    if options.out is not None:
        files.write_json(Path(options.out), results)
    console.print(verify_table(results))


if __name__ == "__main__":
    main(export)
