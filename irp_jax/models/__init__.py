"""The networks, by name. The only package that imports flax."""

from collections.abc import Callable

import flax.linen as nn

from irp_jax.errors import unknown
from irp_jax.models.architecture import Architecture, Layer
from irp_jax.models.layers import Conv, Dense, Norm, describe, forward, standardize
from irp_jax.models.resnet import ResNet, WideResNet
from irp_jax.models.vgg import VGG, VGG16

__all__ = [
    "MODELS",
    "Architecture",
    "Conv",
    "Dense",
    "Layer",
    "Norm",
    "build",
    "describe",
    "forward",
    "standardize",
]


def _small_resnet(depth: int) -> Callable[..., ResNet]:
    """ResNet of section 4.2 of He et al. (2016): three stages of n blocks, 6n + 2 layers."""
    return lambda classes, scale: ResNet(((depth - 2) // 6,) * 3, scale(16, 32, 64), classes)


MODELS = {
    "resnet8": _small_resnet(8),
    "resnet20": _small_resnet(20),
    "resnet32": _small_resnet(32),
    "resnet44": _small_resnet(44),
    "resnet56": _small_resnet(56),
    "resnet110": _small_resnet(110),
    "resnet18": lambda classes, scale: ResNet((2,) * 4, scale(64, 128, 256, 512), classes),
    "vgg16": lambda classes, scale: VGG(tuple(scale(*stage) for stage in VGG16), classes),
    "wrn28_4": lambda classes, scale: WideResNet((4,) * 3, scale(16, 64, 128, 256), classes),
}


def build(name: str, classes: int, width: float = 1.0) -> nn.Module:
    """The network called `name`.

    Args:
        name: a key of `MODELS`.
        classes: number of logits.
        width: multiplies every channel count (rounded, at least 1).

    Raises:
        UserError: there is no network of that name; names the nearest.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name](classes, lambda *widths: tuple(max(1, round(w * width)) for w in widths))
