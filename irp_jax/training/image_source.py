"""Where the images of a step come from: arrays on the devices, or files that the host reads."""

import dataclasses
import math
from collections.abc import Generator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from irp_jax import parallel, prng
from irp_jax.config import AVERAGE, Config
from irp_jax.data import FileSplit, Split
from irp_jax.data.streaming import filled
from irp_jax.errors import UserError
from irp_jax.training.plan import SEGMENT, Plan
from irp_jax.training.progress import Setup

FEW = 256
"""Number of images for the accuracies after each epoch. A whole split would take too long."""

SEGMENT_BYTES = 2**30
"""Largest number of bytes of the images of a segment that is read from files."""


class Source(Protocol):
    """The training images of a run."""

    def segments(self, batches: np.ndarray, view: int) -> Generator[jax.Array, None, None]:
        """Yields the images for each segment of an epoch, as `compile_steps` takes them.

        Args:
            batches: (segments, steps, N) int32, positions in the data set.
            view: number of the augmentation of the images.
        """
        ...


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Images that every device holds: (M, H, W, C) uint8. All segments choose from them."""

    images: jax.Array

    def segments(self, batches: np.ndarray, view: int) -> Generator[jax.Array, None, None]:
        """Yields all images for each segment."""
        for _ in batches:
            yield self.images


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Images in files. The next segment is read while the devices train on the present one.

    Attributes:
        split: the training images.
        mesh: devices that each batch is split over. A process reads the share of its own devices.
        seed: of the run. With the view and the position of an image it decides how it is cropped,
            so a resumed run sees the same images.
    """

    split: FileSplit
    mesh: jax.sharding.Mesh
    seed: int

    def segments(self, batches: np.ndarray, view: int) -> Generator[jax.Array, None, None]:
        """Yields images (steps, N, H, W, C) uint8 for each segment, split over the devices."""
        segments, steps, size = batches.shape
        ours = batches[:, :, parallel.share(size)]
        rows = ours.ravel()
        keys = np.stack([np.full_like(rows, self.seed, np.int64), np.full_like(rows, view), rows])
        images = self.split.take(rows).read(keys.T, ahead=len(rows) // segments)
        try:
            for _ in range(segments):
                shape = (*ours.shape[1:], *self.split.image_shape)
                yield parallel.place_share(
                    filled(images, shape), parallel.batches(self.mesh), (steps, size, *shape[2:])
                )
        finally:
            images.close()


class Resident(NamedTuple):
    """What stays on the devices for the whole run, and the source of the images.

    Attributes:
        source: of the training images.
        labels: (M,) int32, of the training split.
        seen: some training images, with labels and indices, for the check of an alarm.
        key: of the run.
    """

    source: Source
    labels: jax.Array
    seen: tuple[jax.Array, jax.Array, jax.Array]
    key: jax.Array


def on_devices(setup: Setup) -> Resident:
    """Puts the arrays of a run on the devices."""
    whole, split = parallel.replicated(setup.mesh), setup.dataset.train
    source: Source
    if isinstance(split, FileSplit):
        source = Streamed(split, setup.mesh, setup.config.seed)
    else:
        images: Any = parallel.place(split.images, whole)
        source = InMemory(images)
    labels: Any = parallel.place(split.labels, whole)
    key = parallel.place(prng.key(setup.config.seed), whole)
    return Resident(source, labels, sample_images(setup, split), key)


def sample_images(setup: Setup, split: Split | FileSplit) -> Any:
    """Returns up to `FEW` images of a split, labels and indices, split over the devices."""
    devices = setup.mesh.size
    count = min(max(FEW, devices), len(split)) // devices * devices
    # Evenly spaced, because a user's images may be sorted by class.
    indices = np.linspace(0, len(split) - 1, count).astype(np.int32)
    few = split.take(indices).loaded()
    return parallel.place((few.images, few.labels, indices), parallel.batch(setup.mesh))


def order(config: Config, plan: Plan, images: int, epoch: int) -> np.ndarray:
    """Returns image indices, (segments, steps, batch) int32, in an order drawn by seed and epoch.

    Images that do not fill a batch or a segment are left out of this epoch.
    """
    drawn = np.random.default_rng((config.seed, epoch)).permutation(images).astype(np.int32)
    used = drawn[: plan.steps_per_epoch * config.batch_size]
    return used.reshape(plan.segments, -1, config.batch_size)


def longest_segment(config: Config, shape: tuple[int, int, int], streamed: bool) -> int:
    """Returns the largest number of steps of one compiled call.

    Args:
        config: of the run.
        shape: of an image.
        streamed: whether training images are read from files.

    Raises:
        UserError: images are read from files, and a setting needs all of them in memory.
    """
    if not streamed:
        return SEGMENT
    _check(config)
    return max(1, min(SEGMENT, SEGMENT_BYTES // (config.batch_size * math.prod(shape))))


def _check(config: Config) -> None:
    if config.defense == "fgsm-mep":
        raise UserError(
            f"--defense=fgsm-mep remembers a perturbation of each image in memory, which is not "
            f"done for the folder {config.dataset}: give --defense=n-fgsm, for instance"
        )
    if config.teacher not in ("", AVERAGE):
        raise UserError(
            f"--teacher={config.teacher} keeps its outputs for all images in memory, which is not "
            f"done for the folder {config.dataset}: give --teacher=average, or none"
        )
