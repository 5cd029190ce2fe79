"""MobileNetV2."""

from collections.abc import Callable

import flax.linen as nn
import jax

from irp_jax.models.parts import ACTIVATIONS, conv, norm, standardize

STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
"""Expansion, channels, blocks and stride of each stage: table 2 of Sandler et al. (2018).

The first two of its five strides of two, of the stem and of stage 2, are one here, as is usual for
images of 32 pixels. `MobileNetV2.large` has all five."""


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018): inverted residuals with depthwise convolutions.

    Attributes:
        widths: channels of the stem, of each stage, and of the last convolution.
        classes: number of logits.
        activation: a key of `parts.ACTIVATIONS`; "relu" means ReLU6, as published.
        large: whether strides are those for ImageNet, which divide height and width by 32, not 8.
    """

    widths: tuple[int, ...]
    classes: int
    activation: str = "relu"
    large: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        act = _activation(self.activation)
        stem, *widths, last = self.widths
        x = conv(stem, 2 if self.large else 1, name="stem")(standardize(images))
        x = act(norm(train, name="stem_norm")(x))
        for stage, (width, (expansion, _, depth, stride)) in enumerate(
            zip(widths, STAGES, strict=True), start=1
        ):
            stride = 2 if self.large and stage == 2 else stride
            for index in range(depth):
                x = InvertedResidual(
                    width, expansion, stride if index == 0 else 1, self.activation,
                    name=f"stage{stage}_block{index}",
                )(x, train)  # fmt: skip
        x = act(norm(train, name="last_norm")(conv(last, size=1, name="last")(x)))
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


def _activation(name: str) -> Callable[[jax.Array], jax.Array]:
    return nn.relu6 if name == "relu" else ACTIVATIONS[name]


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection; x is added if the shapes agree."""

    width: int
    expansion: int
    stride: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act = _activation(self.activation)
        y, inner = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = conv(inner, size=1, name="expand")(y)
            y = act(norm(train, name="expand_norm")(y))
        y = conv(inner, self.stride, groups=inner, name="depthwise")(y)
        y = act(norm(train, name="depthwise_norm")(y))
        y = norm(train, name="project_norm")(conv(self.width, size=1, name="project")(y))
        return x + y if x.shape == y.shape else y
