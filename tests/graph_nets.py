"""Small networks of many kinds, with their channel groups and MACs derived by hand."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (8, 8, 3)
PIXELS = 8 * 8
CLASSES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network with its expected channel graph.

    Attributes:
        model: what `traced.trace` takes.
        groups: channel group -> channels.
        whole: (layer, channels, part of the reason) for all channels, except the logits, that
            cannot be pruned.
        macs: MACs of the dense network.
        random: whether training draws random numbers whose shapes depend on the channels.
        any_batch: see `ChannelGraph`.
    """

    model: Any
    groups: dict[str, int]
    macs: int
    whole: tuple[tuple[str, int, str], ...] = ()
    random: bool = False
    any_batch: bool = True


class Net(nn.Module):
    """A network whose layers are made by a function."""

    body: Callable

    @nn.compact
    def __call__(self, images, train):
        return self.body(self, images, train)


CASES: dict[str, Case] = {}


def net(groups, macs, **others):
    """Returns a decorator that adds a network to `CASES`: (module, images, train) -> logits."""

    def add(body):
        CASES[body.__name__] = Case(model=Net(body), groups=groups, macs=macs, **others)
        return body

    return add


def conv(features, name, size=3, **others):
    return nn.Conv(features, (size, size), use_bias=False, name=name, **others)


def norm(train, name):
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


def head(x):
    return nn.Dense(CLASSES, name="out")(x.mean((1, 2)))


def layer_macs(channels_in, channels_out, size=3, pixels=PIXELS):
    return pixels * size**2 * channels_in * channels_out


STEM = layer_macs(3, 6)
"""MACs of the first convolution of most networks here, which has 6 channels."""


@net({"a": 6, "b": 4}, STEM + layer_macs(6, 4) + 4 * 5)
def chain(net, x, train):
    x = nn.relu(norm(train, "norm")(conv(6, "a")(x)))
    x = nn.gelu(nn.Conv(4, (3, 3), name="b")(x))
    return head(x)


@net({"a": 6, "b": 4}, STEM + 2 * layer_macs(6, 4) + 6 * 5)
def residual(net, x, train):
    x = conv(6, "a")(x)
    y = nn.relu(norm(train, "norm1")(conv(4, "b")(x)))
    return head(nn.relu(x + norm(train, "norm2")(conv(6, "c")(y))))


@net(
    {"a": 6, "b": 4, "c": 7},
    STEM + layer_macs(6, 4, pixels=16) + layer_macs(4, 7, pixels=16)
    + layer_macs(6, 7, 1, pixels=16) + 7 * 5,
)  # fmt: skip
def projection(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    y = nn.relu(norm(train, "norm1")(conv(4, "b", strides=2)(x)))
    y = norm(train, "norm2")(conv(7, "c")(y))
    return head(nn.relu(y + conv(7, "d", 1, strides=2)(x)))


@net({"a": 6}, STEM + 64 * 9 * 6 + 6 * 5)
def depthwise(net, x, train):
    x = conv(6, "a")(x)
    x = norm(train, "norm")(conv(6, "b", feature_group_count=6)(x))
    return head(nn.relu6(x))


@net({"a": 4, "expand": 12}, layer_macs(3, 4) + 2 * 64 * 4 * 12 + 64 * 9 * 12 + 4 * 5)
def inverted_residual(net, x, train):
    x = conv(4, "a")(x)
    y = nn.relu6(norm(train, "norm1")(conv(12, "expand", 1)(x)))
    y = nn.relu6(norm(train, "norm2")(conv(12, "depthwise", feature_group_count=12)(y)))
    return head(x + norm(train, "norm3")(conv(4, "project", 1)(y)))


@net({"a": 6, "b": 4, "c": 3}, STEM + layer_macs(6, 4) + layer_macs(10, 3) + 13 * 5)
def concatenation(net, x, train):
    x = conv(6, "a")(x)
    x = jnp.concatenate([x, conv(4, "b")(nn.relu(norm(train, "norm1")(x)))], -1)
    x = jnp.concatenate([x, conv(3, "c")(nn.relu(norm(train, "norm2")(x)))], -1)
    return head(nn.relu(norm(train, "norm3")(x)))


@net({"a": 6}, STEM + 12 * 5)
def concatenated_with_itself(net, x, train):
    x = conv(6, "a")(x)
    return head(jnp.concatenate([nn.relu(x), nn.relu(-x)], -1))


@net({"a": 6, "hidden": 7}, STEM + 16 * 6 * 7 + 7 * 5)
def flatten(net, x, train):
    x = nn.max_pool(nn.relu(conv(6, "a")(x)), (2, 2), (2, 2))
    x = nn.relu(nn.Dense(7, name="hidden")(x.reshape(len(x), -1)))
    return nn.Dense(CLASSES, name="out")(x)


@net({"a": 6, "b": 4}, STEM + layer_macs(6, 4) + 64 * 10 * 5)
def flatten_of_a_concatenation(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    x = jnp.concatenate([conv(4, "b")(x), x], -1)
    return nn.Dense(CLASSES, name="out")(x.reshape(len(x), -1))


@net({"a": 6, "squeeze": 2}, STEM + 2 * 6 * 2 + 6 * 5)
def squeeze_and_excitation(net, x, train):
    x = norm(train, "norm")(conv(6, "a")(x))
    y = nn.relu(nn.Dense(2, name="squeeze")(x.mean((1, 2))))
    y = nn.sigmoid(nn.Dense(6, name="excite")(y))
    return head(x * y[:, None, None])


@net(
    {"a": 3, "b": 2},
    STEM + layer_macs(6, 8) + 8 * 5,
    whole=(("a", 2, "reduce_"), ("b", 4, "reduce_")),
)
def group_norm(net, x, train):
    """Only whole normalisation groups can be pruned."""
    x = nn.relu(nn.GroupNorm(3, name="norm1")(conv(6, "a")(x)))
    return head(nn.relu(nn.GroupNorm(2, name="norm2")(conv(8, "b")(x))))


@net({"a": 6}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("b", 4, "reduce_"),))
def layer_norm(net, x, train):
    x = conv(4, "b")(nn.relu(conv(6, "a")(x)))
    return head(nn.LayerNorm(name="norm")(x))


@net(
    {"a": 6, "attention/query": 2, "attention/value[1]": 3},
    STEM + 3 * 64 * 6 * 6 + 2 * 64 * 64 * 6 + 64 * 6 * 6 + 6 * 5,
    whole=(("attention/query", 3, "two activations sums over it"),),
)
def attention(net, x, train):
    """Heads and value channels can be pruned, but not the channels of queries and keys."""
    x = nn.relu(conv(6, "a")(x)).reshape(len(x), -1, 6)
    x = x + nn.MultiHeadDotProductAttention(2, use_bias=False, name="attention")(x)
    return nn.Dense(CLASSES, name="out")(x.mean(1))


@net(
    {"a[0]": 4, "a[1]": 2, "b[1]": 2, "c": 5},
    layer_macs(3, 8) + 64 * 9 * 2 * 8 + 64 * 8 * 5 + 5 * 5,
)
def grouped(net, x, train):
    """Four groups that read two channels each. Whole groups, and one channel of all, can go."""
    x = nn.relu(conv(8, "a")(x))
    x = nn.relu(conv(8, "b", feature_group_count=4)(x))
    x = conv(5, "c", 1)(x)
    return head(x)


def shuffled(x, groups):
    n, height, width, channels = x.shape
    x = x.reshape(n, height, width, groups, channels // groups)
    return x.swapaxes(3, 4).reshape(n, height, width, channels)


@net({"a[1]": 3, "b": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 2, "no array"),))
def channel_shuffle(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    return head(conv(4, "b")(shuffled(x, 2)))


@net(
    {"a[0]": 2, "a[1]": 4, "b[1]": 2, "b[2]": 2, "d[1]": 4},
    layer_macs(3, 8) + 64 * 4 * 8 + 64 * 9 * 8 + 64 * 4 * 8 + 8 * 5,
)
def grouped_and_shuffled(net, x, train):
    """Grouped convolutions with a channel shuffle, as in ShuffleNet."""
    x = nn.relu(conv(8, "a")(x))
    x = conv(8, "b", 1, feature_group_count=2)(x)
    x = nn.relu(shuffled(norm(train, "norm")(x), 2))
    x = conv(8, "c", feature_group_count=8)(x)
    return head(conv(8, "d", 1, feature_group_count=2)(x))


@net({"b": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 6, "reduce_sum over it"),))
def mean_over_channels(net, x, train):
    x = conv(6, "a")(x)
    x = x - x.mean(-1, keepdims=True)
    return head(nn.relu(conv(4, "b")(x)))


@net({"a[0]": 2, "a[1]": 4, "b": 4}, STEM + layer_macs(4, 4) + 6 * 5)
def split_and_concatenate(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    left, right = jnp.split(x, [2], axis=-1)
    right = nn.relu(norm(train, "norm")(conv(4, "b")(right)))
    return head(jnp.concatenate([left, right], -1))


@net({"a[2]": 2, "a[3]": 2}, STEM + layer_macs(3, 4) + 4 * 5)
def a_slice(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    return head(conv(4, "b")(x[..., 1:4]) + x[..., 2:])


@net({"a[0]": 3, "b": 4}, STEM + layer_macs(3, 4) + 4 * 5)
def gated_linear_unit(net, x, train):
    x = nn.glu(conv(6, "a")(x))
    return head(nn.relu(conv(4, "b")(x)))


@net(
    {"a": 4, "b": 5, "c[2]": 2},
    layer_macs(3, 4) + layer_macs(4, 5, pixels=16) + layer_macs(5, 8, pixels=16) + 8 * 5,
    whole=(("c", 2, "no array has its size"),),
)
def option_a_shortcut(net, x, train):
    """The shortcut with padded channels (He et al. 2016). Padded channels belong to groups."""
    x = nn.relu(conv(4, "a")(x))
    y = nn.relu(norm(train, "norm1")(conv(5, "b", strides=2)(x)))
    y = norm(train, "norm2")(conv(8, "c")(y))
    x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    return head(nn.relu(x + y))


@net({"a": 6}, STEM + 2 * layer_macs(6, 6) + 6 * 5)
def one_kernel_used_twice(net, x, train):
    x, again = nn.relu(conv(6, "a")(x)), conv(6, "b")
    return head(nn.relu(again(nn.relu(again(x)))))


@net({"a": 6, "kernel/out": 4}, STEM + 2 * 64 * 6 * 4 + 6 * 5)
def tied_weights(net, x, train):
    """A kernel that is used twice, the second time transposed."""
    x = nn.relu(conv(6, "a")(x))
    kernel = net.param("kernel", nn.initializers.lecun_normal(), (6, 4))
    return head(x + nn.relu(x @ kernel) @ kernel.T)


@net({"kernel/out": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 6, "reduce_sum over it"),))
def weight_standardisation(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    kernel = net.param("kernel", nn.initializers.lecun_normal(), (3, 3, 6, 4))
    kernel = kernel - kernel.mean((0, 1, 2))
    kernel = kernel / jnp.sqrt(jnp.square(kernel).mean((0, 1, 2)) + 1e-5)
    order = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=order)
    return head(nn.relu(x))


@net({"kernel/out": 4}, STEM + 64 * 6 * 4 + 4 * 5, whole=(("a", 6, "reduce_sum over it"),))
def weight_norm(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    kernel = net.param("kernel", nn.initializers.lecun_normal(), (6, 4))
    length = net.param("length", nn.initializers.ones, (4,))
    kernel = kernel * (length / jnp.sqrt(jnp.square(kernel).sum(0)))
    return head(nn.relu(x @ kernel))


class Step(nn.Module):
    """A layer with the signature that `nn.scan` needs."""

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(x + conv(6, "conv")(x)), None


@net(
    {"b": 4}, STEM + 3 * layer_macs(6, 6) + layer_macs(6, 4) + 4 * 5,
    whole=(("a", 6, "scan in"),), any_batch=False,
)  # fmt: skip
def scan(net, x, train):
    x = conv(6, "a")(x)
    layers = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    x, _ = layers(name="layers")(x, None)
    return head(nn.relu(conv(4, "b")(x)))


class Block(nn.Module):
    """A block with batch norm."""

    @nn.compact
    def __call__(self, x, train):
        y = nn.relu(norm(train, "norm")(conv(4, "b")(x)))
        return x + conv(6, "c")(y)


@net({"a": 6, "block/b": 4}, STEM + 2 * layer_macs(6, 4) + 6 * 5)
def remat(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    return head(nn.remat(Block, static_argnums=(2,))(name="block")(x, train))


@jax.custom_jvp
def own_jvp(x, y):
    return jnp.maximum(x, 0) * y


@own_jvp.defjvp
def _(primals, tangents):
    (x, y), (tangent, _) = primals, tangents
    return own_jvp(x, y), jax.nn.sigmoid(x) * tangent


@net({"a": 6, "b": 4}, STEM + layer_macs(6, 4) + 4 * 5)
def custom_jvp(net, x, train):
    """A function with a custom derivative that is not its own."""
    x = conv(6, "a")(x)
    return head(own_jvp(conv(4, "b")(own_jvp(x, jnp.tanh(x))), jnp.float32(2)))


@jax.custom_vjp
def own_vjp(x):
    return jnp.round(x)


own_vjp.defvjp(lambda x: (own_vjp(x), None), lambda _, gradient: (3 * gradient,))


@net({"a": 6}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("b", 4, "custom_vjp"),), any_batch=False)
def custom_vjp(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    return head(own_vjp(conv(4, "b")(x)))


@net({"a": 6, "b": 4}, STEM + layer_macs(6, 4) + 4 * 5, random=True)
def dropout(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    x = nn.Dropout(0.5, deterministic=not train)(x)
    x = nn.relu(conv(4, "b")(x))
    x = nn.Dropout(0.5, broadcast_dims=(1, 2), deterministic=not train)(x)
    return head(x)


@net({"a": 6}, STEM + 6 * 5 + 5 * 5)
def logits_that_a_layer_reads(net, x, train):
    logits = head(nn.relu(conv(6, "a")(x)))
    return logits + nn.Dense(CLASSES, name="more")(logits)


@net({"a": 6}, STEM + layer_macs(6, 4) + 6 * 5, whole=(("b", 4, "no layer reads it"),))
def read_by_nobody(net, x, train):
    x = nn.relu(norm(train, "norm1")(conv(6, "a")(x)))
    norm(train, "norm2")(conv(4, "b")(x))
    return head(x)


@net({}, 64 * 3 * 5)
def nothing_to_prune(net, x, train):
    return nn.Dense(CLASSES, name="out")(x.reshape(len(x), -1))


@net({"a": 6, "b": 4, "c": 3}, STEM + layer_macs(6, 4) + layer_macs(6, 3) + 4 * 5 + 3 * 5)
def two_heads(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    one = nn.Dense(CLASSES, name="one")(nn.relu(conv(4, "b")(x)).mean((1, 2)))
    return one + nn.Dense(CLASSES, name="two")(nn.relu(conv(3, "c")(x)).max((1, 2)))


@net({"a": 6, "b": 4}, STEM + 2 * 6 * 4 + 4 * 5)
def pixels_that_are_looked_up(net, x, train):
    x = nn.relu(conv(6, "a")(x)).reshape(len(x), 64, 6)
    x = jnp.take(x, jnp.array([5, 3]), axis=1)
    return head(nn.relu(nn.Dense(4, name="b")(x))[:, None])


@net({"a": 6, "b": 4}, layer_macs(3, 6, pixels=16) + layer_macs(6, 4, pixels=16) + 4 * 5)
def transposed_convolution(net, x, train):
    """The zeros inserted into the input count no MACs."""
    x = nn.relu(conv(6, "a", strides=2)(x))
    x = nn.ConvTranspose(4, (3, 3), strides=(2, 2), name="b")(x)
    return head(nn.relu(x))


@net({"b": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 6, "cumsum along it"),))
def cumulative_sum_over_channels(net, x, train):
    x = jnp.cumsum(conv(6, "a")(x), -1)
    return head(nn.relu(conv(4, "b")(x)))


@net({"b": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 6, "reduce_max over it"),))
def softmax_over_channels(net, x, train):
    x = nn.softmax(conv(6, "a")(x))
    return head(nn.relu(conv(4, "b")(x)))


@net({"a": 6, "b": 4}, STEM + layer_macs(6, 4) + 4 * 5)
def learned_constants(net, x, train):
    """One slope for each channel, and one slope for all channels."""
    x = conv(6, "a")(x)
    x = jnp.where(x > 0, x, x * net.param("slopes", nn.initializers.normal(), (6,)))
    return head(nn.PReLU(name="slope")(conv(4, "b")(x)))


@net({"b": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 6, "values of a constant"),))
def constants_that_differ(net, x, train):
    x = conv(6, "a")(x) * np.arange(1, 7, dtype=np.float32)
    return head(nn.relu(conv(4, "b")(x + np.full(6, 0.5, np.float32))))


@net({"a": 6, "b": 4}, STEM + layer_macs(8, 4) + 4 * 5)
def coordinates(net, x, train):
    """Constant channels are concatenated: the row of each pixel, and ones."""
    x = nn.relu(conv(6, "a")(x))
    rows = jax.lax.broadcasted_iota(jnp.float32, (*x.shape[:3], 1), 1) / 8
    x = jnp.concatenate([rows, x, jnp.ones_like(rows)], -1)
    return head(nn.relu(conv(4, "b")(x)))


@net({"a": 6, "b/out": 4}, STEM + 64 * 6 * 4 + 4 * 5)
def einsum(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    kernel = net.param("b", nn.initializers.lecun_normal(), (4, 6))
    return head(nn.relu(jnp.einsum("oi,nhwi->nhwo", kernel, x)))


@net({"a": 6, "b": 4}, STEM + layer_macs(6, 4) + 64 * 6 * 4 + 24 * 5)
def bilinear_pooling(net, x, train):
    """Products of all pairs of channels of two layers."""
    x = nn.relu(conv(6, "a")(x))
    x = jnp.einsum("nhwc,nhwd->ncd", x, nn.relu(conv(4, "b")(x))) / 64
    return nn.Dense(CLASSES, name="out")(x.reshape(len(x), -1))


@net({"b": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 6, "sort in"),), any_batch=False)
def unknown_primitive(net, x, train):
    x = jnp.sort(conv(6, "a")(x), -1)
    return head(nn.relu(conv(4, "b")(x)))


@net({"b": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 6, "reversed"),))
def reversed_channels(net, x, train):
    x = nn.relu(conv(6, "a")(x))
    return head(nn.relu(conv(4, "b")(x + x[..., ::-1])))


@net(
    {"a": 6, "b": 3}, layer_macs(3, 6, pixels=16) + layer_macs(6, 12, pixels=16) + 3 * 5,
    whole=(("b", 2, "reduce_sum over it"), ("b", 2, "reduce_sum over it")),
)  # fmt: skip
def depth_to_space(net, x, train):
    """The parts of the channel axis that become pixels stay; the rest can be pruned."""
    x = nn.relu(conv(6, "a", strides=2)(x))
    x = nn.relu(conv(12, "b")(x))
    x = x.reshape(-1, 4, 4, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 3)
    return head(x)


@net({"a": 6}, STEM + 6 * 5, any_batch=False)
def images_that_know_of_each_other(net, x, train):
    x = conv(6, "a")(x)
    return head(nn.relu(x - x.mean((0, 1, 2))))


@net({"a": 6, "b": 4}, STEM + 64 * 6 * 4 + 4 * 5)
def images_as_rows(net, x, train):
    """The pixels of all images form one axis."""
    x = nn.relu(conv(6, "a")(x)).reshape(-1, 6)
    x = nn.relu(nn.Dense(4, name="b")(x)).reshape(-1, 8, 8, 4)
    return head(x)


@net({"a": 6, "b": 4}, 2 * (STEM + layer_macs(6, 4) + 4 * 5))
def two_views(net, x, train):
    """The batch has each image and its mirror image, so its size is doubled."""
    number = len(x)
    x = nn.relu(conv(6, "a")(jnp.concatenate([x, x[:, :, ::-1]])))
    logits = head(nn.relu(norm(train, "norm")(conv(4, "b")(x))))
    return (logits[:number] + logits[number:]) / 2


@net({"a": 6, "b": 4}, STEM + 2 * layer_macs(6, 4) + 6 * 5)
def stochastic_depth(net, x, train):
    """The shape of the random numbers does not depend on channels."""
    x = nn.relu(conv(6, "a")(x))
    y = conv(6, "c")(nn.relu(conv(4, "b")(x)))
    y = nn.Dropout(0.5, broadcast_dims=(1, 2, 3), deterministic=not train)(y)
    return head(x + y)


@net({"a": 3, "b": 4}, STEM + layer_macs(3, 4) + 4 * 5, whole=(("a", 2, "reduce_max over it"),))
def maxout(net, x, train):
    """The maximum of pairs of channels. Only whole pairs can be pruned."""
    x = conv(6, "a")(x).reshape(-1, 8, 8, 3, 2).max(-1)
    return head(nn.relu(conv(4, "b")(x)))


@net(
    {"b": 4}, STEM + layer_macs(6, 4) + 4 * 5, whole=(("a", 6, "cond in"),), any_batch=False
)  # fmt: skip
def branches(net, x, train):
    dark = x[0, 0, 0, 0] < 0.5
    x = jax.lax.cond(dark, jnp.tanh, jnp.sin, conv(6, "a")(x))
    return head(nn.relu(conv(4, "b")(x)))


@net(
    {"attention/query": 2, "attention/value[1]": 3, "up": 7},
    16 * 3 * 4 * 6 + 4 * 5 * 6 * 6 + 2 * 5 * 5 * 6 + 2 * 5 * 6 * 7 + 6 * 5,
    whole=(
        ("embed", 6, "reduce_sum over it"), ("attention/query", 3, "two activations"),
        ("attention/out", 6, "reduce_sum over it"), ("down", 6, "reduce_sum over it"),
    ),
)  # fmt: skip
def vision_transformer(net, x, train):
    """Four patches and a learned token. Channels under layer normalisation cannot be pruned."""
    x = nn.Conv(6, (4, 4), 4, padding="VALID", name="embed")(x).reshape(-1, 4, 6)
    token = net.param("token", nn.initializers.normal(), (1, 1, 6))
    x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
    x = x + net.param("places", nn.initializers.normal(), (1, 5, 6))
    y = nn.LayerNorm(name="norm1")(x)
    x = x + nn.MultiHeadDotProductAttention(2, use_bias=False, name="attention")(y)
    y = nn.gelu(nn.Dense(7, name="up")(nn.LayerNorm(name="norm2")(x)))
    x = x + nn.Dense(6, name="down")(y)
    return nn.Dense(CLASSES, name="out")(x[:, 0])


@net(
    {"embed": 6, "up": 7}, 4 * 48 * 6 + 2 * 6 * 4 * 7 + 6 * 5,
    whole=(("down", 4, "positions in the image"),),
)  # fmt: skip
def mixer(net, x, train):
    """A layer over positions, with its own hidden channels."""
    x = nn.Conv(6, (4, 4), 4, padding="VALID", name="embed")(x).reshape(-1, 4, 6)
    y = nn.gelu(nn.Dense(7, name="up")(x.swapaxes(1, 2)))
    x = nn.relu(x + nn.Dense(4, name="down")(y).swapaxes(1, 2))
    return nn.Dense(CLASSES, name="out")(x.mean(1))


def channels_first(variables, images):
    x = images.transpose(0, 3, 1, 2)
    for name in ("a", "b"):
        x = jax.lax.conv(x, variables[name], (1, 1), "SAME")
        x = jax.nn.relu(x + variables[f"{name}_bias"][:, None, None])
    return x.mean((2, 3)) @ variables["out"]


def one_image(variables, image):
    """Channels first, without a batch."""
    x = image.transpose(2, 0, 1)[None]
    x = jax.nn.relu(jax.lax.conv(x, variables["a"], (1, 1), "SAME"))[0]
    x = jax.nn.relu(jax.vmap(jnp.matmul, (None, 2), 2)(variables["b"][:, :, 0, 0], x))
    return variables["out"].T @ x.mean((1, 2))


def vmapped(variables, images):
    return jax.vmap(functools.partial(one_image, variables))(images)


def arrays(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


CASES["channels_first"] = Case(
    model=(
        channels_first,
        arrays(a=(6, 3, 3, 3), a_bias=(6,), b=(4, 6, 3, 3), b_bias=(4,), out=(4, 5)),
    ),
    groups={"a/out": 6, "b/out": 4},
    macs=STEM + layer_macs(6, 4) + 4 * 5,
)
CASES["vmapped"] = Case(
    model=(vmapped, arrays(a=(6, 3, 3, 3), b=(4, 6, 1, 1), out=(4, 5))),
    groups={"a/out": 6, "b/out": 4},
    macs=STEM + 64 * 6 * 4 + 4 * 5,
)
