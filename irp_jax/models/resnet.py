"""Residual networks for small images, of any size and number of classes."""

import flax.linen as nn
import jax

from irp_jax.models.parts import conv, norm, standardize


class ResNet(nn.Module):
    """Residual network (He et al. 2016), projection shortcuts where the width changes.

    Attributes:
        blocks: blocks in each stage; the first of each later stage halves the image.
        widths: channels of each stage.
        classes: number of logits.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = conv(self.widths[0], name="stem")(standardize(images))
        x = nn.relu(norm(train, name="stem_norm")(x))
        for stage, (depth, width) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                x = Block(width, stride, name=f"stage{stage}_block{index}")(x, train)
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), x projected where its shape changes."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = conv(self.width, self.stride, name="conv1")(x)
        y = nn.relu(norm(train, name="norm1")(y))
        y = norm(train, name="norm2")(conv(self.width, name="conv2")(y))
        if x.shape != y.shape:
            x = conv(self.width, self.stride, size=1, name="shortcut")(x)
            x = norm(train, name="shortcut_norm")(x)
        return nn.relu(x + y)


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis 2016): norm and relu before each convolution.

    Attributes:
        blocks: blocks in each stage; the first of each later stage halves the image.
        widths: channels of the stem, then of each stage.
        classes: number of logits.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        stem, *widths = self.widths
        x = conv(stem, name="stem")(standardize(images))
        for stage, (depth, width) in enumerate(zip(self.blocks, widths, strict=True), start=1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                name = f"stage{stage}_block{index}"
                x = PreActivationBlock(width, stride, project=index == 0, name=name)(x, train)
        x = nn.relu(norm(train, name="final_norm")(x))
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


class PreActivationBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); with `project` x passes a convolution, too."""

    width: int
    stride: int
    project: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(norm(train, name="norm1")(x))
        if self.project:
            x = conv(self.width, self.stride, size=1, name="shortcut")(y)
        y = conv(self.width, self.stride, name="conv1")(y)
        y = nn.relu(norm(train, name="norm2")(y))
        return x + conv(self.width, name="conv2")(y)
