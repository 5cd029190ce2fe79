"""Networks by name: ordinary Flax modules, one file each, which know nothing of pruning."""

from collections.abc import Callable

import flax.linen as nn

from irp_jax.errors import unknown
from irp_jax.models.densenet import DenseNet
from irp_jax.models.mobilenet import STAGES, MobileNetV2
from irp_jax.models.own import check as check_file
from irp_jax.models.own import from_file, is_file
from irp_jax.models.resnet import ResNet, WideResNet
from irp_jax.models.vgg import VGG, VGG16

__all__ = [
    "MODELS", "VGG", "DenseNet", "MobileNetV2", "ResNet", "WideResNet", "build", "check_file",
    "from_file", "is_file",
]  # fmt: skip

_MOBILENET = (32, *(width for _, width, _, _ in STAGES), 1280)


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
    "mobilenet_v2": lambda classes, scale: MobileNetV2(scale(*_MOBILENET), classes),
    "densenet": lambda classes, scale: DenseNet((6, 6, 6), scale(12)[0], classes),
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
