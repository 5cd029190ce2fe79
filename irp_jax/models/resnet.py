"""Residual networks for images of any size, with any number of classes."""

import flax.linen as nn
import jax

from irp_jax.models.parts import ACTIVATIONS, conv, norm, standardize


class ResNet(nn.Module):
    """Residual network (He et al. 2016) with projection shortcuts where the shape changes.

    Attributes:
        blocks: blocks in each stage. The first block of each later stage halves height and width.
        widths: channels of each stage.
        classes: number of logits.
        activation: a key of `parts.ACTIVATIONS`.
        bottleneck: whether blocks have three convolutions, and stages 4 times `widths` channels.
        large: whether the stem is that for ImageNet, which divides height and width by 4: a
            convolution of 7 x 7 pixels and a maximum over 3 x 3, each with stride 2.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int
    activation: str = "relu"
    bottleneck: bool = False
    large: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        act, block = ACTIVATIONS[self.activation], Bottleneck if self.bottleneck else Block
        stride, size = (2, 7) if self.large else (1, 3)
        stem = conv(self.widths[0], stride, size=size, name="stem")
        x = act(norm(train, name="stem_norm")(stem(standardize(images))))
        if self.large:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, (depth, width) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                name = f"stage{stage}_block{index}"
                x = block(width, stride, self.activation, name=name)(x, train)
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


class Block(nn.Module):
    """act(x + norm(conv(act(norm(conv(x)))))); x is projected if its shape changes."""

    width: int
    stride: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        y = conv(self.width, self.stride, name="conv1")(x)
        y = act(norm(train, name="norm1")(y))
        y = norm(train, name="norm2")(conv(self.width, name="conv2")(y))
        if x.shape != y.shape:
            x = conv(self.width, self.stride, size=1, name="shortcut")(x)
            x = norm(train, name="shortcut_norm")(x)
        return act(x + y)


class Bottleneck(nn.Module):
    """As `Block`, with convolutions of 1 x 1, 3 x 3 and 1 x 1 pixels; the last has 4 times `width`.

    The 3 x 3 convolution has the stride, as in most implementations. In the paper it is the first.
    """

    width: int
    stride: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act, out = ACTIVATIONS[self.activation], 4 * self.width
        y = act(norm(train, name="norm1")(conv(self.width, size=1, name="conv1")(x)))
        y = act(norm(train, name="norm2")(conv(self.width, self.stride, name="conv2")(y)))
        y = norm(train, name="norm3")(conv(out, size=1, name="conv3")(y))
        if x.shape != y.shape:
            x = conv(out, self.stride, size=1, name="shortcut")(x)
            x = norm(train, name="shortcut_norm")(x)
        return act(x + y)


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis 2016) with pre-activation blocks.

    Attributes:
        blocks: blocks in each stage. The first block of each later stage halves height and width.
        widths: channels of the stem, then of each stage.
        classes: number of logits.
        activation: a key of `parts.ACTIVATIONS`.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        stem, *widths = self.widths
        x = conv(stem, name="stem")(standardize(images))
        for stage, (depth, width) in enumerate(zip(self.blocks, widths, strict=True), start=1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                name = f"stage{stage}_block{index}"
                x = PreActivationBlock(width, stride, index == 0, self.activation, name=name)(
                    x, train
                )
        x = act(norm(train, name="final_norm")(x))
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


class PreActivationBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))); with `project`, x is act(norm(x)) convolved."""

    width: int
    stride: int
    project: bool
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        y = act(norm(train, name="norm1")(x))
        if self.project:
            x = conv(self.width, self.stride, size=1, name="shortcut")(y)
        y = conv(self.width, self.stride, name="conv1")(y)
        y = act(norm(train, name="norm2")(y))
        return x + conv(self.width, name="conv2")(y)
