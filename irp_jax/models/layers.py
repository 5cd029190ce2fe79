"""Layers that say which channels they read and write, so that networks of them can be pruned.

A layer takes its width from the parameters it is given; `features` only sets the width at
initialisation. So a slimmed network is the same module applied to smaller arrays.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from irp_jax.errors import UserError
from irp_jax.models.architecture import Architecture, Layer
from irp_jax.models.convolution import convolve


def _parameter(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
) -> jax.Array:
    """The parameter as stored, whatever its width; made by `init` where there is none yet."""
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape)


class Conv(nn.Module):
    """Convolution without bias, zero padding of half the kernel.

    Attributes:
        features: output channels at initialisation.
        reads, writes: channel groups of input and output; None means not prunable.
        kernel_size: height and width of the kernel, odd.
        stride: step between output positions.
    """

    features: int
    reads: str | None
    writes: str | None
    kernel_size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        if self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, got {self.kernel_size}: try 3")
        init = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
        return convolve(images, _parameter(self, "kernel", init, shape), self.stride)


class Dense(nn.Module):
    """Matrix product plus bias. Attributes as in `Conv`."""

    features: int
    reads: str | None
    writes: str | None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        kernel = _parameter(self, "kernel", init, (inputs.shape[-1], self.features))
        return inputs @ kernel + _parameter(self, "bias", nn.initializers.zeros, (self.features,))


class Norm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over all axes but the last.

    Attributes:
        group: the channel group it normalises.
        momentum: how much of the running statistics a step keeps.
        epsilon: added to the variance.
    """

    group: str | None
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        shape = (inputs.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "variance", jnp.ones, shape)
        if not train:
            factor = scale * jax.lax.rsqrt(variance.value + self.epsilon)
            return inputs * factor + (bias - mean.value * factor)
        axes = tuple(range(inputs.ndim - 1))
        batch_mean = inputs.mean(axes)
        batch_variance = jnp.maximum(jnp.square(inputs).mean(axes) - jnp.square(batch_mean), 0.0)
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * batch_mean
            variance.value = keep * variance.value + (1 - keep) * batch_variance
        factor = scale * jax.lax.rsqrt(batch_variance + self.epsilon)
        return inputs * factor + (bias - batch_mean * factor)


def standardize(images: jax.Array) -> jax.Array:
    """[0, 1] -> [-2, 2]. Inside the model, so that an attack's epsilon is in pixel units."""
    return (images - 0.5) / 0.25


def describe(
    model: nn.Module, image_shape: tuple[int, int, int], classes: int | None = None
) -> Architecture:
    """The architecture of a network built from this file's layers, found by tracing it once.

    Args:
        model: called as `model(images, train=False)`.
        image_shape: (H, W, C) of one image.
        classes: how many logits it must have; any number if None.

    Raises:
        UserError: it has parameters outside these layers, which nobody could count or prune, uses
            a layer twice, or has not a logit for each class.
    """
    layers: list[Layer] = []

    def record(next_method, args, kwargs, context):
        outputs = next_method(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(module, Conv | Dense | Norm):
            layers.append(_declare(module, args[0].shape, outputs.shape))
        return outputs

    def trace(key, images):
        with nn.intercept_methods(record):
            return model.init_with_output(key, images, train=False)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    logits, variables = jax.eval_shape(trace, jax.random.key(0), images)
    _check_declared(layers, variables["params"])
    if classes is not None and logits.shape != (1, classes):
        raise UserError(
            f"the network answers with {logits.shape[1:]} numbers an image, not ({classes},): it "
            "needs one for each class of the data"
        )
    return Architecture(tuple(layers))


def _check_declared(layers: list[Layer], params: Any) -> None:
    """Every parameter is in exactly one of the layers."""
    paths = [layer.path for layer in layers]
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    owners = {tuple(key.key for key in path[:-1]) for path, _ in leaves}
    if others := sorted("/".join(path) for path in owners - set(paths)):
        raise UserError(
            f"{others[0] or 'the network itself'} has parameters but is no Conv, Dense or Norm of "
            "irp_jax.models: build the network from those, or it cannot be counted and pruned"
        )
    if twice := sorted("/".join(path) for path in set(paths) if paths.count(path) > 1):
        raise UserError(f"layer {twice[0]} is used twice: give each use a layer of its own")


def _declare(
    module: Conv | Dense | Norm, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> Layer:
    is_norm, is_conv = isinstance(module, Norm), isinstance(module, Conv)
    positions = 1
    for size in outputs[1:-1]:
        positions *= size
    return Layer(
        path=tuple(module.path),
        kind="norm" if is_norm else "conv" if is_conv else "dense",
        reads=module.group if isinstance(module, Norm) else module.reads,
        writes=module.group if isinstance(module, Norm) else module.writes,
        channels_in=inputs[-1],
        channels_out=outputs[-1],
        window=0 if is_norm else module.kernel_size**2 if isinstance(module, Conv) else 1,
        positions=positions,
        bias=not is_conv and not is_norm,
    )


def forward(model: nn.Module) -> Callable[..., tuple[Any, Any]]:
    """The network as a pure function: (weights, batch_stats, images, train) -> logits, batch_stats.

    Args:
        model: called as `model(images, train=...)`.
    """

    def network(weights: Any, batch_stats: Any, images: jax.Array, train: bool) -> tuple[Any, Any]:
        variables = {"params": weights, "batch_stats": batch_stats}
        if not train:
            return model.apply(variables, images, train=False), batch_stats
        logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    return network
