"""DenseNet for small images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from irp_jax.models.parts import ACTIVATIONS, conv, norm, standardize


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al. 2017): each layer reads all earlier channels of its stage.

    Attributes:
        layers: layers in each stage. Between stages channels, height and width are halved.
        growth: channels that each layer adds.
        classes: number of logits.
        activation: a key of `parts.ACTIVATIONS`.
    """

    layers: tuple[int, ...]
    growth: int
    classes: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        x = conv(2 * self.growth, name="stem")(standardize(images))
        for stage, depth in enumerate(self.layers, start=1):
            if stage > 1:
                x = act(norm(train, name=f"transition{stage}_norm")(x))
                x = conv(x.shape[-1] // 2, size=1, name=f"transition{stage}")(x)
                x = _halve(x)
            for index in range(depth):
                y = Layer(self.growth, self.activation, name=f"stage{stage}_layer{index}")(x, train)
                x = jnp.concatenate([x, y], axis=-1)
        x = act(norm(train, name="final_norm")(x))
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


class Layer(nn.Module):
    """conv(act(norm(bottleneck(act(norm(x)))))); the bottleneck has 4 x `growth` channels."""

    growth: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        y = act(norm(train, name="norm1")(x))
        y = conv(4 * self.growth, size=1, name="bottleneck")(y)
        y = act(norm(train, name="norm2")(y))
        return conv(self.growth, name="conv")(y)


def _halve(x: jax.Array) -> jax.Array:
    """Computes 2 x 2 average pooling by a reshape, which needs no type promotion."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
