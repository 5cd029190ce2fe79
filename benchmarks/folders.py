"""Speed of training on a folder of images: reading alone, training alone, and both together.

    pip install '.[train,folders]'
    python -m benchmarks.folders
    python -m benchmarks.folders --image-size=64 --photo-size=64x64 --model=resnet8
    python -m benchmarks.folders --epochs=0

It makes a folder of generated JPEG photos. Training alone is on the same images in memory.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from rich.console import Console

from irp_jax import config as configs
from irp_jax import data, files, machine, parallel, traced
from irp_jax.cli.common import main, publishable
from irp_jax.cli.flags import parse
from irp_jax.config import Config
from irp_jax.data import Dataset, FileSplit
from irp_jax.inference.function import inference
from irp_jax.report.console.terminal import Terminal
from irp_jax.training import image_source, loop, progress
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan
from irp_jax.training.program import compile_for
from irp_jax.training.teacher import TeacherOutputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the speed of reading a folder of images with that of training on it."""

    image_size: int = 224
    """Height and width to which images are brought."""
    photo_size: str = "500x375"
    """Width and height of the photos. Those of ImageNet are of about the default size."""
    images: int = 256
    """Number of training images."""
    model: str = "resnet18"
    """Network that is trained."""
    width: float = 1.0
    """Factor of its channel counts."""
    batch_size: int = 32
    """Images of a step."""
    epochs: int = 2
    """Epochs that are timed, after one that compiles. 0: only reading is measured."""
    out: str | None = None
    """A file for the figures."""


def folders(arguments: list[str]) -> None:
    """Measures, prints and writes the speeds."""
    options = parse(Options, arguments, "python -m benchmarks.folders")
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        bytes_each = _make(Path(temporary), options)
        config = Config(
            dataset=temporary, model=options.model, width=options.width, budget="0.5",
            image_size=options.image_size, batch_size=options.batch_size, epochs=9, guard=False,
            validation=0.0,
        )  # fmt: skip
        found: dict[str, Any] = {"kilobytes of a photo": round(bytes_each / 1e3, 1)}
        train, held_out, test, names = data.open_folder(temporary, options.image_size, 0.0)
        found["reading alone"] = _reading(train, options)
        streamed = Dataset(
            name=temporary, train=train, validation=held_out.loaded(), test=test.loaded(),
            class_names=names,
        )  # fmt: skip
        resident = dataclasses.replace(streamed, train=train.loaded())
        for name, dataset in (("training alone", resident), ("both", streamed)):
            if options.epochs:
                found[name] = _training(config, dataset, options)
    for name, figures in found.items():
        console.print(f"{name}: {figures}")
    if options.out:
        settings = {**dataclasses.asdict(options), "environment": machine.describe()}
        command = publishable("python -m benchmarks.folders", arguments)
        files.write_json(Path(options.out), {"command": command, **settings, "found": found})


def _make(root: Path, options: Options) -> float:
    """Writes photos of two classes with the detail of a photo. Returns the mean of their bytes."""
    across, down = map(int, options.photo_size.split("x"))
    random = np.random.default_rng(0)
    for split, count in (("train", options.images), ("test", 8)):
        for number in range(count):
            # Noise at several scales. A file of the default size has 88 kB, on ImageNet about 110.
            pixels = np.zeros((down, across, 3), np.float32)
            for scale in (2, 4, 16, 64):
                small = random.integers(0, 256, (down // scale + 1, across // scale + 1, 3))
                coarse = Image.fromarray(small.astype(np.uint8)).resize((across, down))
                pixels += np.asarray(coarse) * 0.3
            folder = root / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{number}.jpg", quality=90)
    sizes = [path.stat().st_size for path in root.glob("train/*/*.jpg")]
    return float(np.mean(sizes))


def _reading(split: FileSplit, options: Options) -> dict[str, float]:
    """Reads all images once, with random crops, from the system's cache."""
    mesh = parallel.mesh(parallel.usable_devices(options.batch_size))
    steps = len(split) // options.batch_size
    batches = np.arange(steps * options.batch_size, dtype=np.int32).reshape(1, steps, -1)
    reading = image_source.Streamed(split, mesh, seed=0)
    list(reading.segments(batches[:, :1], view=0))  # imports packages
    began, cpu = time.perf_counter(), time.process_time()
    for images in reading.segments(batches, view=0):
        jax.block_until_ready(images)
    return _speeds(batches.size, began, cpu)


def _training(config: Config, dataset: Dataset, options: Options) -> dict[str, float]:
    """Trains for some epochs as a run does."""
    shape = dataset.image_shape
    model = traced.named(config.model, config.width, shape, dataset.num_classes)
    longest = image_source.longest_segment(config, shape, isinstance(dataset.train, FileSplit))
    plan = make_plan(config, METHODS[config.method], model.graph, len(dataset.train), longest)
    setup = progress.Setup(
        config=config, identity=configs.identity(config), plan=plan, dataset=dataset, model=model,
        apply=inference(model.network),
        mesh=parallel.mesh(parallel.usable_devices(config.batch_size)),
    )  # fmt: skip
    resident, now = image_source.on_devices(setup), progress.start(setup)
    now = dataclasses.replace(now, state=parallel.place(now.state, parallel.replicated(setup.mesh)))
    program, silent = compile_for(setup, now), Terminal(quiet=True)
    silent.begin(config, plan, 0)
    for epoch in range(1 + options.epochs):
        if epoch == 1:
            began, cpu = time.perf_counter(), time.process_time()
        outputs = TeacherOutputs(epoch)
        now, _ = loop.advance(setup, now, program, resident, outputs, silent)
    return _speeds(options.epochs * plan.steps_per_epoch * config.batch_size, began, cpu)


def _speeds(images: int, began: float, cpu: float) -> dict[str, float]:
    return {
        "images_per_s": round(images / (time.perf_counter() - began), 2),
        "cpu_ms_per_image": round(1e3 * (time.process_time() - cpu) / images, 2),
    }


if __name__ == "__main__":
    main(folders)
