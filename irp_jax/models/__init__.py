"""The networks of this package, by name: plain Flax modules without any code for pruning."""

from collections.abc import Callable

import flax.linen as nn

from irp_jax.errors import unknown
from irp_jax.models.densenet import DenseNet
from irp_jax.models.mobilenet import STAGES, MobileNetV2
from irp_jax.models.own import check as check_file
from irp_jax.models.own import from_file, is_file
from irp_jax.models.parts import ACTIVATIONS
from irp_jax.models.resnet import ResNet, WideResNet
from irp_jax.models.vgg import VGG, VGG16

__all__ = [
    "ACTIVATIONS", "MODELS", "VGG", "DenseNet", "MobileNetV2", "ResNet", "WideResNet", "build",
    "check_file", "from_file", "is_file",
]  # fmt: skip

_MOBILENET = (32, *(width for _, width, _, _ in STAGES), 1280)


def _small_resnet(depth: int) -> Callable[..., ResNet]:
    """Returns a ResNet of He et al. (2016), section 4.2: 3 stages of n blocks, 6n + 2 layers."""
    return lambda scale, *rest: ResNet(((depth - 2) // 6,) * 3, scale(16, 32, 64), *rest)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": _small_resnet(8),
    "resnet20": _small_resnet(20),
    "resnet32": _small_resnet(32),
    "resnet44": _small_resnet(44),
    "resnet56": _small_resnet(56),
    "resnet110": _small_resnet(110),
    "resnet18": lambda scale, classes, act, large=False: ResNet(
        (2,) * 4, scale(64, 128, 256, 512), classes, act, large=large
    ),
    "resnet50": lambda scale, classes, act, large=False: ResNet(
        (3, 4, 6, 3), scale(64, 128, 256, 512), classes, act, bottleneck=True, large=large
    ),
    "vgg16": lambda scale, *rest: VGG(tuple(scale(*stage) for stage in VGG16), *rest),
    "wrn28_4": lambda scale, *rest: WideResNet((4,) * 3, scale(16, 64, 128, 256), *rest),
    "mobilenet_v2": lambda scale, classes, act, large=False: MobileNetV2(
        scale(*_MOBILENET), classes, act, large=large
    ),
    "densenet": lambda scale, *rest: DenseNet((6, 6, 6), scale(12)[0], *rest),
}


WITH_LARGE = ("resnet18", "resnet50", "mobilenet_v2")
"""Networks that have another form for large images, that for ImageNet."""

LARGE = 128
"""Smallest height and width of images that count as large, in pixels."""


def build(
    name: str,
    classes: int,
    width: float = 1.0,
    activation: str = "relu",
    image_shape: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Returns the network with a given name.

    Args:
        name: a key of `MODELS`.
        classes: number of logits.
        width: factor of every channel count; the product is rounded, at least 1.
        activation: a key of `ACTIVATIONS`.
        image_shape: (H, W, C) of an image. The networks of `WITH_LARGE` have the form for ImageNet
            if height and width are at least `LARGE`. None: the images are small.

    Raises:
        UserError: there is no network or activation of that name; the message names the nearest.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)

    def scale(*widths: int) -> tuple[int, ...]:
        return tuple(max(1, round(w * width)) for w in widths)

    if name in WITH_LARGE and image_shape is not None and min(image_shape[:2]) >= LARGE:
        return MODELS[name](scale, classes, activation, large=True)
    return MODELS[name](scale, classes, activation)
