"""Layers and functions that several networks use."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def conv(
    features: int, stride: int = 1, *, size: int = 3, groups: int = 1, name: str | None = None
) -> nn.Conv:
    """Returns a convolution without bias, with zero padding of half the kernel on every side.

    Args:
        features: output channels.
        stride: step between output positions.
        size: height and width of the kernel, odd.
        groups: number of channel groups that are convolved separately.
        name: name of the layer.
    """
    return nn.Conv(
        features, (size, size), stride, padding=size // 2, use_bias=False, name=name,
        feature_group_count=groups,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
    )  # fmt: skip


def norm(train: bool, name: str | None = None) -> "BatchNorm":
    """Returns a batch norm that normalises by the batch's statistics in training."""
    return BatchNorm(use_running_average=not train, name=name)


class BatchNorm(nn.Module):
    """A faster `nn.BatchNorm` (Ioffe & Szegedy 2015), with the same arrays and names.

    It takes one multiplication and one addition for each value instead of two of each. A training
    step of ResNet20 on CPUs takes 6 to 11 % less time.

    Attributes:
        use_running_average: whether it normalises by the running statistics, not the batch's.
        momentum: fraction of the running statistics that a step keeps.
        epsilon: added to the variance.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        if self.use_running_average:
            factor = scale * jax.lax.rsqrt(var.value + self.epsilon)
            return x * factor + (bias - mean.value * factor)
        axes = tuple(range(x.ndim - 1))
        now = x.mean(axes)
        spread = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(now), 0.0)
        if not self.is_initializing():
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * now
            var.value = keep * var.value + (1 - keep) * spread
        factor = scale * jax.lax.rsqrt(spread + self.epsilon)
        return x * factor + (bias - now * factor)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "gelu": nn.gelu,
}
"""Activations by their names on the command line. The last three are smooth. Smooth activations
improve robust accuracy according to Xie et al. 2020 ("Smooth adversarial training")."""


def standardize(images: jax.Array) -> jax.Array:
    """Maps [0, 1] to [-2, 2]. This is in the model, so an attack's epsilon is in pixel units."""
    return (images - 0.5) / 0.25
