"""Residual networks for small images, of any size and number of classes."""

import flax.linen as nn
import jax

from irp_jax.models.layers import Conv, Dense, Norm, standardize


class ResNet(nn.Module):
    """Residual network (He et al. 2016), projection shortcuts where the width changes.

    Every stage has one channel group for its residual stream, which all its blocks add to, and one
    per block for the channels inside it.

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
        x = Conv(self.widths[0], None, "stage1", name="stem")(standardize(images))
        x = nn.relu(Norm("stage1", name="stem_norm")(x, train))
        stream = "stage1"
        for stage, (depth, width) in enumerate(zip(self.blocks, self.widths, strict=True), start=1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                block = Block(
                    width, stream, f"stage{stage}", stride, name=f"stage{stage}_block{index}"
                )
                x, stream = block(x, train), f"stage{stage}"
        return Dense(self.classes, stream, None, name="classifier")(x.mean((1, 2)))


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), x projected where stride or stream change."""

    width: int
    reads: str
    writes: str
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner = f"{self.name}.inner"
        y = Conv(self.width, self.reads, inner, stride=self.stride, name="conv1")(x)
        y = nn.relu(Norm(inner, name="norm1")(y, train))
        y = Norm(self.writes, name="norm2")(
            Conv(self.width, inner, self.writes, name="conv2")(y), train
        )
        if self.reads != self.writes:
            x = Conv(self.width, self.reads, self.writes, 1, self.stride, name="shortcut")(x)
            x = Norm(self.writes, name="shortcut_norm")(x, train)
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
        stream = "stem.out"
        x = Conv(stem, None, stream, name="stem")(standardize(images))
        for stage, (depth, width) in enumerate(zip(self.blocks, widths, strict=True), start=1):
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                block = PreActivationBlock(
                    width, stream, f"stage{stage}", stride, name=f"stage{stage}_block{index}"
                )
                x, stream = block(x, train), f"stage{stage}"
        x = nn.relu(Norm(stream, name="final_norm")(x, train))
        return Dense(self.classes, stream, None, name="classifier")(x.mean((1, 2)))


class PreActivationBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), x projected where stride or stream change."""

    width: int
    reads: str
    writes: str
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner = f"{self.name}.inner"
        y = nn.relu(Norm(self.reads, name="norm1")(x, train))
        if self.reads != self.writes:
            x = Conv(self.width, self.reads, self.writes, 1, self.stride, name="shortcut")(y)
        y = Conv(self.width, self.reads, inner, stride=self.stride, name="conv1")(y)
        y = nn.relu(Norm(inner, name="norm2")(y, train))
        return x + Conv(self.width, inner, self.writes, name="conv2")(y)
