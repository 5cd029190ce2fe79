"""VGG for small images."""

import flax.linen as nn
import jax

from irp_jax.models.parts import ACTIVATIONS, conv, norm, standardize

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Configuration D of Simonyan & Zisserman (2015) with batch norm and one dense layer.

    Height and width are halved after each stage if both are more than one pixel. So images smaller
    than 32 pixels work too.

    Attributes:
        stages: channels of each convolution, stage by stage.
        classes: number of logits.
        activation: a key of `parts.ACTIVATIONS`.
    """

    stages: tuple[tuple[int, ...], ...]
    classes: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x, act = standardize(images), ACTIVATIONS[self.activation]
        for stage, widths in enumerate(self.stages, start=1):
            for index, width in enumerate(widths):
                name = f"stage{stage}_conv{index}"
                x = conv(width, name=name)(x)
                x = act(norm(train, name=f"{name}_norm")(x))
            if min(x.shape[1:3]) > 1:
                x = _halve(x)
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


def _halve(x: jax.Array) -> jax.Array:
    """Computes 2 x 2 max pooling by a reshape, whose gradient is fast on every backend."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
