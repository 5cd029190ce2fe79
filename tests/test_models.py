"""Models: what they declare is what they are, counted by hand; every size runs; norms normalise."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pruning_nets import IMAGE_SHAPES, abstract_variables, elements, quick_jit, trace, traced_macs

from irp_jax import models
from irp_jax.errors import UserError
from irp_jax.models.architecture import Architecture, Layer
from irp_jax.network import inference
from irp_jax.pruning import cost

EVERY_MODEL = sorted(models.MODELS)


def dense_cost(name, image_shape=(32, 32, 3), classes=10):
    return cost.total(models.describe(models.build(name, classes), image_shape))


@pytest.mark.parametrize("name", EVERY_MODEL)
@pytest.mark.parametrize("shape", IMAGE_SHAPES)
def test_every_model_runs_on_every_shape_and_is_what_it_declares(name, shape):
    model = models.build(name, 7)
    variables = abstract_variables(model, shape)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    network = models.forward(model)

    def train(variables, images):
        return network(variables["params"], variables["batch_stats"], images, train=True)

    jaxpr, (logits, batch_stats) = trace(train, variables, images)
    assert (logits.shape, logits.dtype) == ((1, 7), jnp.float32)
    assert jax.tree.map(jnp.shape, batch_stats) == jax.tree.map(jnp.shape, variables["batch_stats"])

    declared = cost.total(models.describe(model, shape))
    assert declared.params == elements(variables["params"])
    assert declared.macs == traced_macs(jaxpr)


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "wrn28_4"])
def test_width_multiplies_every_channel_count(name):
    narrow = models.describe(models.build(name, 10, 0.3), (8, 8, 1)).groups
    full = models.describe(models.build(name, 10), (8, 8, 1)).groups
    assert narrow == {group: round(0.3 * size) for group, size in full.items()}
    least = models.describe(models.build(name, 10, 1e-6), (8, 8, 1)).groups
    assert set(least.values()) == {1}


def test_resnet20_by_hand():
    # Channels 16, 32, 64 on images of 32, 16 and 8 pixels; 3 x 3 kernels.
    stem = 9 * 3 * 16
    stage1 = 6 * 9 * 16 * 16
    stage2 = 9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32  # The last is the shortcut.
    stage3 = 9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64
    classifier = 64 * 10
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)  # Scale and bias; the stem and two shortcuts have one.
    params = stem + stage1 + stage2 + stage3 + classifier + 10 + norms
    macs = 32**2 * (stem + stage1) + 16**2 * stage2 + 8**2 * stage3 + classifier
    assert (params, macs) == (272_474, 40_813_184)
    assert dense_cost("resnet20") == cost.Cost(macs=macs, params=params)


def residual_by_hand(depth, widths, size=32, stem=None, classes=10):
    """Kernel entries and MACs of a residual network without norms; `depth` blocks a stage."""
    stem = stem or widths[0]
    weights = 9 * 3 * stem
    macs = size**2 * weights
    before = stem
    for stage, width in enumerate(widths):
        side = size >> stage
        shortcut = before * width if before != width else 0
        stage_weights = 9 * before * width + (2 * depth - 1) * 9 * width**2 + shortcut
        weights, macs, before = weights + stage_weights, macs + side**2 * stage_weights, width
    return weights + before * classes, macs + before * classes


def test_resnet56_by_hand():
    weights, macs = residual_by_hand(9, (16, 32, 64))
    norms = 2 * (19 * 16 + 19 * 32 + 19 * 64)
    # 853,018 with parameter-free shortcuts (He et al. 2016: 0.85M), 2,752 in the two projections.
    assert weights + norms + 10 == 853_018 + (16 * 32 + 32 * 64) + 2 * (32 + 64) == 855_770
    assert dense_cost("resnet56") == cost.Cost(macs=macs, params=855_770)


def test_resnet110_by_hand():
    weights, macs = residual_by_hand(18, (16, 32, 64))
    norms = 2 * (37 * 16 + 37 * 32 + 37 * 64)
    assert weights + norms + 10 == 1_727_962 + 2_752  # He et al. 2016: 1.7M.
    assert dense_cost("resnet110") == cost.Cost(macs=macs, params=1_730_714)


def test_resnet18_by_hand():
    weights, macs = residual_by_hand(2, (64, 128, 256, 512))
    norms = 2 * (5 * 64 + 5 * 128 + 5 * 256 + 5 * 512)
    assert weights + norms + 10 == 11_173_962  # As the usual CIFAR implementations count it.
    assert dense_cost("resnet18") == cost.Cost(macs=macs, params=11_173_962)
    assert macs == 555_422_720


def test_wrn28_4_by_hand():
    weights, macs = residual_by_hand(4, (64, 128, 256), stem=16)
    # Norms stand before convolutions; the first of a stage sees the width of the stage before.
    norms = 2 * ((16 + 7 * 64) + (64 + 7 * 128) + (128 + 7 * 256) + 256)
    assert weights + norms + 10 == 5_849_050  # Zagoruyko & Komodakis 2016: 5.8M.
    assert dense_cost("wrn28_4") == cost.Cost(macs=macs, params=5_849_050)


def test_vgg16_by_hand():
    chain = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16)]
    chain += [(128, 256, 8), (256, 256, 8), (256, 256, 8)]
    chain += [(256, 512, 4), (512, 512, 4), (512, 512, 4)] + 3 * [(512, 512, 2)]
    weights = sum(9 * c_in * c_out for c_in, c_out, _ in chain)
    macs = sum(9 * c_in * c_out * side**2 for c_in, c_out, side in chain)
    norms = sum(2 * c_out for _, c_out, _ in chain)
    # 14,728,266 in the usual implementations, whose 4,224 biases before norms do nothing.
    assert weights + norms + 512 * 10 + 10 == 14_728_266 - 4_224
    assert dense_cost("vgg16") == cost.Cost(macs=macs + 5120, params=14_724_042)
    assert macs + 5120 == 313_201_664


def users(architecture, group):
    """Names of the kernels that write and that read a group, and of the norms on it."""
    kernels = architecture.kernels
    return (
        {layer.name for layer in kernels if layer.writes == group},
        {layer.name for layer in kernels if layer.reads == group},
        {
            layer.name
            for layer in architecture.layers
            if layer.kind == "norm" and layer.reads == layer.writes == group
        },
    )


def test_a_residual_stream_is_one_group_with_all_who_write_and_read_it():
    architecture = models.describe(models.build("resnet20", 10), (32, 32, 3))
    assert users(architecture, "stage2") == (
        {f"stage2_block{i}/conv2" for i in range(3)} | {"stage2_block0/shortcut"},
        {"stage2_block1/conv1", "stage2_block2/conv1"}
        | {"stage3_block0/conv1", "stage3_block0/shortcut"},
        {f"stage2_block{i}/norm2" for i in range(3)} | {"stage2_block0/shortcut_norm"},
    )
    assert users(architecture, "stage2_block1.inner") == (
        {"stage2_block1/conv1"},
        {"stage2_block1/conv2"},
        {"stage2_block1/norm1"},
    )
    writes, reads, norms = users(architecture, "stage1")
    assert "stem" in writes and "stem_norm" in norms and "stage2_block0/shortcut" in reads
    assert users(architecture, "stage3")[1] >= {"classifier"}


def test_a_wide_residual_stream_is_one_group_with_all_who_write_and_read_it():
    architecture = models.describe(models.build("wrn28_4", 10), (32, 32, 3))
    assert users(architecture, "stage3") == (
        {f"stage3_block{i}/conv2" for i in range(4)} | {"stage3_block0/shortcut"},
        {f"stage3_block{i}/conv1" for i in range(1, 4)} | {"classifier"},
        {f"stage3_block{i}/norm1" for i in range(1, 4)} | {"final_norm"},
    )


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_every_group_is_written_and_read_and_image_and_logits_are_in_none(name):
    architecture = models.describe(models.build(name, 10), (32, 32, 3))
    for group in architecture.groups:
        writes, reads, norms = users(architecture, group)
        assert writes and reads and norms, group
    first, last = architecture.kernels[0], architecture.kernels[-1]
    assert (first.reads, first.channels_in) == (None, 3)
    assert (last.writes, last.channels_out) == (None, 10)
    assert all(layer.reads and layer.writes for layer in architecture.kernels[1:-1])


class Users(nn.Module):
    """A user's own network, built from the masked layers."""

    @nn.compact
    def __call__(self, images, train):
        x = models.Conv(6, None, "a", kernel_size=5, stride=2, name="first")(images)
        x = nn.relu(models.Norm("a", name="norm")(x, train))
        x = models.Conv(4, "a", "b", kernel_size=1, name="second")(x)
        return models.Dense(3, "b", None, name="last")(x.mean((1, 2)))


def test_a_users_network_is_described_layer_by_layer():
    first, norm, second, last = models.describe(Users(), (7, 9, 2)).layers
    assert first == Layer(
        path=("first",),
        kind="conv",
        reads=None,
        writes="a",
        channels_in=2,
        channels_out=6,
        window=25,
        positions=4 * 5,
        bias=False,
    )
    assert second == dataclasses.replace(
        first, path=("second",), reads="a", writes="b", channels_in=6, channels_out=4, window=1
    )
    assert (norm.kind, norm.reads, norm.writes, norm.weights) == ("norm", "a", "a", 0)
    assert last == Layer(
        path=("last",),
        kind="dense",
        reads="b",
        writes=None,
        channels_in=4,
        channels_out=3,
        window=1,
        positions=1,
        bias=True,
    )


def test_groups_used_with_two_sizes_or_named_like_a_layer_are_refused():
    layers = models.describe(Users(), (8, 8, 1)).layers
    wider = dataclasses.replace(layers[2], channels_in=5)
    with pytest.raises(
        UserError, match="group 'a' has 6 channels, but layer second uses it with 5"
    ):
        Architecture((*layers[:2], wider, layers[3]))
    with pytest.raises(UserError, match="'first' has the name of a layer"):
        Architecture((*layers, dataclasses.replace(layers[3], path=("x",), reads="first")))


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'vgg16'"):
        models.build("vgg19", 10)


def test_norm_normalises_a_batch_and_keeps_running_statistics():
    rng = np.random.default_rng(0)
    inputs = rng.normal(2.0, 3.0, (8, 5, 4, 6)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 6)).astype(np.float32)
    mean, variance = rng.uniform(0.5, 2.0, (2, 6)).astype(np.float32)
    norm = models.Norm("group")
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "variance": variance},
    }
    out, new = norm.apply(variables, inputs, True, mutable=["batch_stats"])
    wide = inputs.astype(np.float64)
    batch_mean, batch_variance = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    expected = (wide - batch_mean) / np.sqrt(batch_variance + 1e-5) * scale + bias
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.9 * mean + 0.1 * batch_mean, rtol=1e-4)
    np.testing.assert_allclose(
        new["batch_stats"]["variance"], 0.9 * variance + 0.1 * batch_variance, rtol=1e-4
    )
    running: Any = norm.apply(variables, inputs, False)
    expected = (wide - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(running, expected, atol=1e-4)


def test_norm_gradient_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    inputs = rng.normal(1.0, 2.0, (4, 3, 3, 5)).astype(np.float32)
    weight = rng.normal(size=inputs.shape).astype(np.float32)
    scale, bias = rng.normal(size=(2, 5)).astype(np.float32)

    def ours(inputs, scale, bias):
        stats = {"mean": jnp.zeros(5), "variance": jnp.ones(5)}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        out, _ = models.Norm("group").apply(variables, inputs, True, mutable=["batch_stats"])
        return (weight * out).sum()

    def definition(inputs, scale, bias):
        centred = inputs - inputs.mean((0, 1, 2))
        variance = jnp.square(centred).mean((0, 1, 2))
        return (weight * (centred / jnp.sqrt(variance + 1e-5) * scale + bias)).sum()

    @quick_jit
    def both(*args):
        return tuple(jax.grad(f, (0, 1, 2))(*args) for f in (ours, definition))

    for a, b in zip(*both(inputs, scale, bias), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_residual_block_is_its_formula():
    """relu(x + norm(conv(relu(norm(conv(x)))))) with norms that do nothing."""
    block = models.resnet.Block(5, "stream", "stream", 1, name="block")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 5)).astype(np.float32)
    first, second = rng.normal(size=(2, 3, 3, 5, 5)).astype(np.float32) / 5
    ones, zeros = np.ones(5, np.float32), np.zeros(5, np.float32)
    norms = ("norm1", "norm2")
    variables = {
        "params": {
            "conv1": {"kernel": first},
            "conv2": {"kernel": second},
            **{norm: {"scale": ones, "bias": zeros} for norm in norms},
        },
        "batch_stats": {norm: {"mean": zeros, "variance": ones} for norm in norms},
    }

    def convolve(x, kernel):
        order = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=order)
        return out / np.float32(np.sqrt(1 + 1e-5))

    @quick_jit
    def both(x):
        expected = jax.nn.relu(x + convolve(jax.nn.relu(convolve(x, first)), second))
        return block.apply(variables, x, train=False), expected

    found, expected = both(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pixels_are_centred_inside_the_model():
    np.testing.assert_allclose(models.standardize(jnp.array([0.0, 0.5, 1.0])), [-2, 0, 2])


def test_a_network_is_measured_in_whole_float32(monkeypatch):
    """GPUs and TPUs would round factors to fewer digits; gradients take over what is asked for."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = models.build("resnet8", 10)
    images = jnp.zeros((2, 8, 8, 1))
    variables = model.init(jax.random.key(0), images, train=False)
    apply = inference(models.forward(model))
    program = jax.make_jaxpr(jax.value_and_grad(lambda x: apply(variables, x).sum()))(images)
    products = [
        equation for equation in str(program).split(" = ")
        if equation.startswith(("conv_general_dilated", "dot_general"))
    ]  # fmt: skip
    layers = len([layer for layer in models.describe(model, (8, 8, 1)).layers if layer.window])
    assert len(products) == 2 * layers
    assert all("HIGHEST" in product for product in products)
