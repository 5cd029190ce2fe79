"""One trained network attacked by several programs in turn: the same weights, images and radius."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from jax.tree_util import Partial

from irp_jax import attacks, data, loading, machine, models, network, parallel, traced
from irp_jax.benchmark import torch_device, torch_resnet
from irp_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A network, what it is attacked on, and how far.

    Attributes:
        name: of the run.
        net: the network.
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) int32.
        epsilon: L-inf radius.
    """

    name: str
    net: network.Network
    images: np.ndarray
    labels: np.ndarray
    epsilon: float


def prepare() -> None:
    """Readies PyTorch; call it before JAX starts, and so before anything is loaded.

    Raises:
        UserError: PyTorch cannot use the device that JAX does.
    """
    device = torch_device.prepare()
    torch_device.compute(device, fast=False)  # attacks are to judge the network that is deployed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What one side made of one slice of the images.

    Attributes:
        images: how many there were.
        robust: attack name -> how many images were robust after it.
        seconds: attack name -> wall time.
        total: wall time of everything.
    """

    images: int
    robust: dict[str, int]
    seconds: dict[str, float]
    total: float


Side = Callable[[np.ndarray, np.ndarray], Found]
"""Attacks (N, H, W, C) images with (N,) labels."""


def load(
    checkpoint: str,
    *,
    images: int | None,
    epsilon: float | None,
    data_dir: str | None,
    say: Callable[[str], None],
) -> Subject:
    """A run of bin/train with its data.

    Args:
        checkpoint: the run's folder.
        images: how many; test images first, then training images. None: the test split.
        epsilon: L-inf radius; None: what the network was trained for.
        data_dir: where the data set lies.
        say: told of damaged checkpoints.
    """
    net = loading.load(checkpoint, say)
    held = data.load(
        net.record["trained"]["dataset"],
        data_dir=data_dir or net.record["trained"]["data_dir"],
        validation_fraction=0.0,
        image_size=net.image_shape[0],
    )
    train = held.train.loaded()
    pixels = np.concatenate([held.test.images, train.images])
    labels = np.concatenate([held.test.labels, train.labels])
    count = len(held.test.images) if images is None else images
    if count > len(pixels):
        raise UserError(f"--images={count}: {net.record['trained']['dataset']} has {len(pixels)}")
    return Subject(
        name=Path(checkpoint).name,
        net=net,
        images=pixels[:count].astype(np.float32) / np.float32(255),
        labels=labels[:count].astype(np.int32),
        epsilon=net.epsilon if epsilon is None else epsilon,
    )


def twin(subject: Subject, *, masked: bool = False) -> torch.nn.Module:
    """The network in PyTorch, images (N, C, H, W); it is made sure that it has the same logits.

    Args:
        subject: of a residual network.
        masked: whether as tools that only mask leave it: the arrays of the dense network, with
            zeros for the channels that are gone.
    """
    net = subject.net
    spec = net.record["model"]
    model = None
    if "name" in spec:
        classes, shape = len(net.class_names), net.image_shape
        model = models.build(net.name, classes, spec["width"], image_shape=shape)
    if not isinstance(model, models.ResNet) or model.bottleneck or model.large:
        raise UserError(f"there is no PyTorch twin of {net.name}: choose a resnet")
    variables = jax.device_get(net.variables)
    if masked:
        traced_model = traced.named(net.name, spec["width"], net.image_shape, len(net.class_names))
        params, state = jax.eval_shape(traced_model.init, jax.random.key(0))
        variables = jax.tree.map(_fill, variables, {"params": params, "batch_stats": state})
    other = torch_resnet.build(
        model.blocks, model.widths, variables["params"], statistics=variables["batch_stats"],
        device=torch_device.device(),
    )  # fmt: skip
    some = subject.images[:256]
    apart = float(np.abs(torch_resnet.logits(other, some) - logits(subject, some)).max())
    if apart > torch_device.AGREEMENT[torch_device.device()]:
        raise UserError(f"the PyTorch copy of {subject.name} differs by {apart:.2g} in its logits")
    return torch_resnet.Contiguous(other).eval()


def _fill(array: np.ndarray, dense: jax.ShapeDtypeStruct) -> np.ndarray:
    """The array in the dense shape, zeros behind: channels that nothing reads and nothing fills."""
    more = [(0, full - left) for full, left in zip(dense.shape, array.shape, strict=True)]
    return np.pad(array, more)


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, H, W, C) and labels as the twin takes them: (N, C, H, W) in that order, int64.

    They lie where it does.
    """
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    where = torch_device.device()
    return torch.from_numpy(pixels).to(where), torch.from_numpy(labels.astype(np.int64)).to(where)


def logits(subject: Subject, images: np.ndarray) -> np.ndarray:
    """(N, K), by the network as it is here."""
    ours = Partial(subject.net.apply, subject.net.variables)
    return attacks.predict(ours, images, batch_size=min(256, len(images)))


def evaluate(
    subject: Subject,
    listed: Sequence[attacks.Attack],
    batch_size: int,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    sanity_checks: bool = False,
) -> Found:
    """The side of this package."""
    began = time.perf_counter()
    batch_size = min(batch_size, len(images))
    devices = parallel.mesh(parallel.usable_devices(batch_size))
    net = subject.net
    report = attacks.evaluate(
        Partial(net.apply, jax.device_put(net.variables, parallel.replicated(devices))),
        images, labels, listed, threat=attacks.linf(subject.epsilon), batch_size=batch_size,
        mesh=devices, sanity_checks=sanity_checks,
    )  # fmt: skip
    robust = {name: round(share * len(images)) for name, share in report.accuracy.items()}
    return Found(
        images=len(images), robust=robust, seconds=dict(report.seconds),
        total=time.perf_counter() - began,
    )  # fmt: skip


def compare(
    subject: Subject, sides: Mapping[str, Side], slices: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Cuts the images into slices; on each, the sides take turns.

    The order is turned around from slice to slice, so that a machine whose speed drifts favours
    nobody. The first slice pays for compilation, where there is any.
    """
    found: dict[str, list[Found]] = {name: [] for name in sides}
    for number, part in enumerate(np.array_split(np.arange(len(subject.images)), slices)):
        turn = list(sides)
        for name in turn if number % 2 == 0 else reversed(turn):
            say(f"{subject.name}: slice {number + 1} of {slices}, {len(part)} images, {name}")
            found[name].append(sides[name](subject.images[part], subject.labels[part]))
    right = logits(subject, subject.images).argmax(-1) == subject.labels
    return {
        "checkpoint": subject.name,
        "model": subject.net.name,
        "dataset": subject.net.record["trained"]["dataset"],
        "defense": subject.net.record["trained"]["defense"],
        "macs_ratio": subject.net.cost["macs_ratio"],
        "images": len(subject.images),
        "epsilon": subject.epsilon,
        "natural": float(right.mean()),
    } | {name: _sum(parts) for name, parts in found.items()}


def _sum(slices: list[Found]) -> dict[str, Any]:
    images = sum(found.images for found in slices)
    names = slices[0].robust
    return {
        "accuracy": {n: sum(found.robust[n] for found in slices) / images for n in names},
        "seconds": {n: sum(found.seconds[n] for found in slices) for n in names},
        "total": sum(found.total for found in slices),
        "slices": [found.total for found in slices],
    }


def environment() -> dict[str, Any]:
    """The machine and the versions, PyTorch's too."""
    return machine.describe() | {
        "torch": torch.__version__, "torch_device": torch_device.device(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
