"""bin/export: writes a trained network to a file for other runtimes, or verifies such a file."""

import dataclasses
import time
from pathlib import Path
from typing import Literal

import numpy as np

from irp_jax import checkpoint, data, files, loading, machine, network
from irp_jax import export as exporting
from irp_jax.cli.common import main, publishable
from irp_jax.cli.flags import parse
from irp_jax.errors import UserError, unknown
from irp_jax.export import artifact
from irp_jax.inference.images import images_of
from irp_jax.inference.record import scheme_of
from irp_jax.quantization import IMAGES, SCHEMES, calibration_images
from irp_jax.report.console.terminal import plain_console
from irp_jax.report.console.verification import verify_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Write a trained network to one file. `bin/export verify` compares file and network."""

    checkpoint: str
    """The folder of a run, such as runs/<name>, a checkpoint in it, or a saved network."""
    out: str
    """The file to write, for example model.onnx."""
    format: Literal["onnx", "tflite", "stablehlo"] = "onnx"
    """onnx, for onnxruntime and others, tflite, for LiteRT, or stablehlo, for JAX."""
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    """Axis order of the images in an ONNX file: channels last (NHWC) or first (NCHW)."""
    multiple: int | None = None
    """Pad channels with zeros to multiples of this, for speed in onnxruntime. 1 adds none.
    Default: that of the run, which is 4 without a table of latencies."""
    quantize: Literal["none", "int8"] = "none"
    """int8: a file that computes in 8-bit integers. The ranges of its activations are
    measured on training images. A network that was trained in 8-bit integers has its ranges, and
    none writes such a file, too."""
    calibration_images: int | None = None
    """Number of training images that the ranges are measured on (int8). Default: 512."""
    data_dir: str | None = None
    """Folder of the data set of the run (int8). Default: as in the run."""
    model: str | None = None
    """FILE.py:NAME of a network of your own. Default: what was saved with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Compare an exported file with its network: accuracy, attacks, size and latency."""

    artifact: str
    """The file that bin/export wrote."""
    checkpoint: str
    """The network that it was exported from: folder of a run, checkpoint, or saved network."""
    model: str | None = None
    """FILE.py:NAME of a network of your own. Default: what was saved with it."""
    dataset: str | None = None
    """Data set, PATH.npz or folder to test on. Default: that of the run."""
    data_dir: str | None = None
    """Folder of the data set. Default: as in the run."""
    images: int | None = None
    """Number of test images, from the first on. Default: all."""
    epsilon: float | None = None
    """L-infinity radius of the attacks in pixels of [0, 1], e.g. 8/255. Default: as in training."""
    steps: int = 10
    """Number of steps of PGD, which attacks the network."""
    queries: int = 200
    """Number of queries of Square, which attacks the file. 0 leaves it out."""
    rounds: int = 50
    """Number of timed runs of each file. 0 leaves latency out."""
    threads: int = 1
    """Number of threads of onnxruntime or LiteRT."""
    seed: int = 0
    """Random seed of the attacks."""
    out: str | None = None
    """Also write the figures to this JSON file."""


def export(arguments: list[str]) -> None:
    """Writes a file. If the first argument is "verify", compares a file and prints a table."""
    if arguments[:1] == ["verify"]:
        return _verify(arguments[1:])
    options = parse(Options, arguments, "bin/export")
    exporting.check_asked(Path(options.out), options.format, options.layout)
    _check_quantization(options)
    console = plain_console()
    net = _with_results(loading.load(options.checkpoint, console.print, model=options.model),
                        Path(options.checkpoint))  # fmt: skip
    if options.quantize == "int8" and net.quantization is None:
        net = net.quantize(_training_images(net, options), model=options.model)
    elif options.calibration_images is not None or options.data_dir is not None:
        raise UserError(
            f"--calibration-images and --data-dir are for networks in float32, and "
            f"{options.checkpoint} has its ranges: leave them out"
        )
    content = exporting.write(
        net, options.out, options.format, layout=options.layout, multiple=options.multiple,
        model=options.model,
    )  # fmt: skip
    console.print(f"written to {options.out}: {len(content):,} bytes, images {options.layout}")
    return None


def _check_quantization(options: Options) -> None:
    """Checks the flags of 8-bit files before the network is loaded."""
    if options.quantize not in ("none", *SCHEMES):
        raise unknown("quantize", options.quantize, ("none", *SCHEMES))
    given = {"--calibration-images": options.calibration_images, "--data-dir": options.data_dir}
    for flag, value in given.items():
        if options.quantize == "none" and value is not None:
            raise UserError(f"{flag} is for --quantize=int8: give both, or leave it out")
    if options.quantize == "int8" and options.format == "stablehlo":
        raise UserError("--quantize=int8 is for --format=onnx and tflite: leave out one of them")
    if options.calibration_images is not None and options.calibration_images < 1:
        raise UserError(
            f"--calibration-images must be at least 1, got {options.calibration_images}"
        )


def _training_images(net: network.Network, options: Options) -> np.ndarray:
    """Returns some images of the training split of the run, evenly spaced."""
    trained = net.record["trained"]
    found = data.load(
        trained["dataset"], data_dir=options.data_dir or trained["data_dir"],
        validation_fraction=trained.get("validation", 0.1), image_size=net.image_shape[0],
    )  # fmt: skip
    return calibration_images(found.train, options.calibration_images or IMAGES)


def _with_results(net: network.Network, run: Path) -> network.Network:
    """Returns the network with the results of its run, if they are of the same weights."""
    path = run / "results.json"
    results = files.read_json(path) if path.is_file() else None
    if not isinstance(results, dict):
        return net
    if results.get("network_sha256") != checkpoint.digest(net.variables):
        return net
    if scheme_of(results) != scheme_of(net.record):
        return net
    return dataclasses.replace(net, results=results)


def _verify(arguments: list[str]) -> None:
    options = parse(VerifyOptions, arguments, "bin/export verify")
    if options.images is not None and options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    if options.out is not None:
        files.check_place(Path(options.out))
    console = plain_console()
    file = artifact.load(options.artifact)  # errors in it show before the data are loaded
    net = loading.load(options.checkpoint, console.print, model=options.model)
    exporting.check_network(file, net, options.artifact)
    images, labels = images_of(net, options.dataset, data_dir=options.data_dir, warn=console.print)
    images, labels = images[: options.images], labels[: options.images]
    began = time.perf_counter()
    report = exporting.verify(
        options.artifact, net, (images, labels), model=options.model, epsilon=options.epsilon,
        steps=options.steps, queries=options.queries, rounds=options.rounds,
        threads=options.threads, seed=options.seed,
    )  # fmt: skip
    results = {
        "model": net.name,
        "dataset": options.dataset or net.record["trained"]["dataset"],
        **report,
        "cost": net.cost,
        "seed": options.seed,
        "wall_time_s": round(time.perf_counter() - began, 1),
        "environment": {**machine.describe(), **artifact.versions()},
        "command": publishable("bin/export verify", arguments),
        "commit": files.commit(),
    }
    if options.out is not None:
        files.write_json(Path(options.out), results)
    console.print(verify_table(results))


if __name__ == "__main__":
    main(export)
