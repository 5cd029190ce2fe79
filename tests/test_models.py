"""Models: parameters and MACs match counts by hand, and every model runs on every shape."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pruning_nets import (
    IMAGE_SHAPES,
    abstract_variables,
    elements,
    named,
    quick_jit,
    trace,
    traced_macs,
)

from irp_jax import models, traced
from irp_jax.errors import UserError
from irp_jax.graph import Extent, Layer, Window
from irp_jax.inference.function import inference
from irp_jax.models import parts, resnet
from irp_jax.pruning import cost

EVERY_MODEL = sorted(models.MODELS)

# Deep variants are slow to trace, so they are tested on one image shape only.
DEEP_RESNETS = {"resnet32", "resnet44", "resnet50", "resnet56", "resnet110"}
DEEP = DEEP_RESNETS | {"mobilenet_v2", "densenet"}
LARGE = (32, 32, 3)


def dense_graph(name):
    return named(name, 1.0, LARGE, 10).graph


def dense_cost(name):
    return cost.total(dense_graph(name))


def is_slow(name, shape):
    """Whether a test repeats what one of a shorter network or of another shape shows."""
    return name in DEEP_RESNETS or (shape != LARGE and name not in ("resnet8", "vgg16"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(n, shape, marks=[pytest.mark.slow] if is_slow(n, shape) else [])
        for n in EVERY_MODEL
        for shape in IMAGE_SHAPES
        if n not in DEEP or shape == LARGE
    ],
)
def test_every_model_runs_on_every_shape_with_the_counted_cost(name, shape):
    model = named(name, 1.0, shape, 10)
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def train(variables, images):
        return model.network(variables["params"], variables["batch_stats"], images, train=True)

    jaxpr, (logits, batch_stats) = trace(train, variables, images)
    assert (logits.shape, logits.dtype) == ((1, 10), jnp.float32)
    assert jax.tree.map(jnp.shape, batch_stats) == jax.tree.map(jnp.shape, variables["batch_stats"])

    found = cost.total(model.graph)
    assert found.params == elements(variables["params"])
    assert found.macs == traced_macs(jaxpr)


@pytest.mark.parametrize(
    "name", ["resnet8", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vgg16", "wrn28_4"))]
)
def test_width_multiplies_every_channel_count(name):
    narrow = named(name, 0.3, (8, 8, 1), 10).graph.groups
    full = dense_graph(name).groups
    assert narrow == {group: round(0.3 * size) for group, size in full.items()}
    # A single channel is in no group, because it cannot be pruned.
    least = named(name, 1e-6, (8, 8, 1), 10).graph
    assert not least.groups
    assert {layer.channels({}) for layer in least.layers} == {(1, 1), (1, 10)}


def test_the_number_of_classes_is_that_of_the_logits():
    model = named("resnet8", 1.0, (8, 8, 1), 7)
    assert model.graph.classes == 7
    assert abstract_variables(model)["params"]["classifier/kernel"].shape == (64, 7)


def test_resnet20_by_hand():
    # Channels 16, 32, 64 on images of 32, 16 and 8 pixels; 3 x 3 kernels.
    stem = 9 * 3 * 16
    stage1 = 6 * 9 * 16 * 16
    stage2 = 9 * 16 * 32 + 5 * 9 * 32 * 32 + 16 * 32  # The last term is the shortcut.
    stage3 = 9 * 32 * 64 + 5 * 9 * 64 * 64 + 32 * 64
    classifier = 64 * 10
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)  # Scale and bias, with stem and shortcuts.
    params = stem + stage1 + stage2 + stage3 + classifier + 10 + norms
    macs = 32**2 * (stem + stage1) + 16**2 * stage2 + 8**2 * stage3 + classifier
    assert (params, macs) == (272_474, 40_813_184)
    assert dense_cost("resnet20") == cost.Cost(macs=macs, params=params)


def residual_by_hand(depth, widths, size=32, stem=None, classes=10):
    """Returns kernel entries and MACs of a residual network with `depth` blocks per stage."""
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


@pytest.mark.slow
def test_resnet110_by_hand():
    weights, macs = residual_by_hand(18, (16, 32, 64))
    norms = 2 * (37 * 16 + 37 * 32 + 37 * 64)
    assert weights + norms + 10 == 1_727_962 + 2_752  # He et al. 2016: 1.7M.
    assert dense_cost("resnet110") == cost.Cost(macs=macs, params=1_730_714)


def test_resnet18_by_hand():
    weights, macs = residual_by_hand(2, (64, 128, 256, 512))
    norms = 2 * (5 * 64 + 5 * 128 + 5 * 256 + 5 * 512)
    assert weights + norms + 10 == 11_173_962  # As in the usual CIFAR implementations.
    assert dense_cost("resnet18") == cost.Cost(macs=macs, params=11_173_962)
    assert macs == 555_422_720


def test_wrn28_4_by_hand():
    weights, macs = residual_by_hand(4, (64, 128, 256), stem=16)
    # Norms precede convolutions. The first norm of a stage has the width of the previous stage.
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
    # The usual implementations have 14,728,266: they add 4,224 biases, which have no effect.
    assert weights + norms + 512 * 10 + 10 == 14_728_266 - 4_224
    assert dense_cost("vgg16") == cost.Cost(macs=macs + 5120, params=14_724_042)
    assert macs + 5120 == 313_201_664


def test_mobilenet_v2_by_hand():
    # Expansion, channels, blocks, stride: table 2 of Sandler et al. (2018) with two other strides.
    table = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)]
    table += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    before, side = 32, 32
    weights, norms = 9 * 3 * 32, 2 * 32
    macs = side**2 * weights
    for expansion, width, depth, stride in table:
        for step in (stride,) + (depth - 1) * (1,):
            inner, expand = expansion * before, expansion > 1
            macs += side**2 * before * inner * expand
            side //= step
            macs += side**2 * (9 * inner + inner * width)
            weights += before * inner * expand + 9 * inner + inner * width
            norms += 2 * (inner * expand + inner + width)
            before = width
    weights += 320 * 1280 + 1280 * 10
    norms += 2 * 1280
    macs += side**2 * 320 * 1280 + 1280 * 10
    # With 1,000 classes it has 3,504,872, as in torchvision.
    assert weights + norms + 10 == 3_504_872 - 990 * 1281
    assert dense_cost("mobilenet_v2") == cost.Cost(macs=macs, params=2_236_682)


def test_densenet_by_hand():
    weights, norms, channels, side = 9 * 3 * 24, 0, 24, 32
    macs = side**2 * weights
    for stage in range(3):
        if stage:
            weights, norms = weights + channels * (channels // 2), norms + 2 * channels
            macs += side**2 * channels * (channels // 2)
            channels, side = channels // 2, side // 2
        for _ in range(6):
            layer = channels * 48 + 9 * 48 * 12
            weights, norms = weights + layer, norms + 2 * (channels + 48)
            macs, channels = macs + side**2 * layer, channels + 12
    norms += 2 * channels
    macs += channels * 10
    assert weights + norms + channels * 10 + 10 == 176_122  # DenseNet-BC of 40 layers.
    assert dense_cost("densenet") == cost.Cost(macs=macs, params=176_122)


# Parameters and MACs of torchvision's networks of these names, which have 1,000 classes.
IMAGENET = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "mobilenet_v2": (3_504_872, 300_774_272),
}


@pytest.mark.parametrize(
    "name", [n if n == "resnet18" else pytest.param(n, marks=pytest.mark.slow) for n in IMAGENET]
)
def test_large_images_get_the_networks_for_imagenet(name):
    graph = named(name, 1.0, (224, 224, 3), 1000).graph
    params, macs = IMAGENET[name]
    assert cost.total(graph) == cost.Cost(macs=macs, params=params)
    assert [whole.name for whole in graph.whole] == ["classifier"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGENET)
def test_a_compact_network_for_imagenet_equals_the_masked_one(name):
    assert traced.check(traced.named(name, 0.1, (128, 128, 3), 5)) < 1e-3


def users(graph, group):
    """Returns the names of the layers that write and read a group, and of its norms."""

    def along(layer, axes):
        return any(group in layer.extents[axis].groups for axis in axes)

    return (
        {layer.name for layer in graph.layers if along(layer, layer.writes)},
        {layer.name for layer in graph.layers if along(layer, layer.reads)},
        {
            name.removesuffix("/scale")
            for name, (extent, *_) in graph.params.items()
            if name.endswith("/scale") and group in extent.groups
        },
    )


def test_a_residual_stream_is_one_group_with_all_its_writers_and_readers():
    graph = dense_graph("resnet20")
    # A group is named after the first layer that writes it.
    assert users(graph, "stage2_block0/conv2") == (
        {f"stage2_block{i}/conv2" for i in range(3)} | {"stage2_block0/shortcut"},
        {"stage2_block1/conv1", "stage2_block2/conv1"}
        | {"stage3_block0/conv1", "stage3_block0/shortcut"},
        {f"stage2_block{i}/norm2" for i in range(3)} | {"stage2_block0/shortcut_norm"},
    )
    assert users(graph, "stage2_block1/conv1") == (
        {"stage2_block1/conv1"},
        {"stage2_block1/conv2"},
        {"stage2_block1/norm1"},
    )
    writes, reads, norms = users(graph, "stem")
    assert writes == {"stem"} | {f"stage1_block{i}/conv2" for i in range(3)}
    assert "stem_norm" in norms and "stage2_block0/shortcut" in reads
    assert users(graph, "stage3_block0/conv2")[1] >= {"classifier"}


def test_a_wide_residual_stream_is_one_group_with_all_its_writers_and_readers():
    # The shortcut of a block is traced before its convolutions.
    assert users(dense_graph("wrn28_4"), "stage3_block0/shortcut") == (
        {f"stage3_block{i}/conv2" for i in range(4)} | {"stage3_block0/shortcut"},
        {f"stage3_block{i}/conv1" for i in range(1, 4)} | {"classifier"},
        {f"stage3_block{i}/norm1" for i in range(1, 4)} | {"final_norm"},
    )


def test_an_inverted_residual_has_its_expansion_as_a_group():
    graph = dense_graph("mobilenet_v2")
    block = "stage3_block1"
    assert users(graph, f"{block}/expand") == (
        {f"{block}/expand", f"{block}/depthwise"},
        {f"{block}/project"},
        {f"{block}/expand_norm", f"{block}/depthwise_norm"},
    )
    writes, reads, _ = users(graph, "stage3_block0/project")
    assert writes == {f"stage3_block{i}/project" for i in range(3)}
    assert reads == {"stage3_block1/expand", "stage3_block2/expand", "stage4_block0/expand"}


def test_what_a_densenet_adds_is_a_group_that_all_later_layers_of_the_stage_read():
    graph = dense_graph("densenet")
    later = [f"stage2_layer{i}" for i in range(3, 6)]
    assert users(graph, "stage2_layer2/conv") == (
        {"stage2_layer2/conv"},
        {f"{layer}/bottleneck" for layer in later} | {"transition3"},
        {f"{layer}/norm1" for layer in later} | {"transition3_norm"},
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in DEEP_RESNETS else n for n in EVERY_MODEL],
)
def test_every_group_is_written_and_read_and_image_and_logits_are_in_none(name):
    graph = dense_graph(name)
    for group in graph.groups:
        writes, reads, norms = users(graph, group)
        assert writes and reads and norms, group
    first, *middle, last = graph.layers
    assert (first.extents[first.reads[0]], last.extents[last.writes[0]]) == (
        Extent("fixed", 3),
        Extent("fixed", 10),
    )
    assert last.final and not any(layer.final for layer in (first, *middle))
    for layer in middle:
        depthwise = layer.name.endswith("/depthwise")  # It reads the group that it writes.
        assert all(layer.extents[axis].groups or depthwise for axis in layer.reads)
        assert all(layer.extents[axis].groups for axis in layer.writes)
    assert [(whole.name, whole.reason) for whole in graph.whole] == [("classifier", "the logits")]
    assert graph.any_batch, "in inference no image knows of the others"


class Users(nn.Module):
    """A user's own network."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(6, (5, 5), 2, use_bias=False, name="first")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.Conv(4, (1, 1), 2, use_bias=False, name="second")(x)
        return nn.Dense(3, name="last")(x.mean((1, 2)))


def test_a_users_network_is_described_layer_by_layer():
    graph = traced.trace(Users(), (7, 9, 2)).graph
    fixed = functools.partial(Extent, "fixed")
    a, b = (Extent("group", size, name) for size, name in ((6, "first"), (4, "second")))
    assert graph.layers == (
        Layer(
            name="first", kind="conv", kernel="first/kernel", reads=(2,), writes=(3,), uses=4 * 5,
            extents=(fixed(5), fixed(5), fixed(2), a),
            window=Window(
                positions=(7, 9), kernel=(5, 5), strides=(2, 2), padding=((2, 2), (2, 2)),
                input_dilation=(1, 1), kernel_dilation=(1, 1), groups=1,
            ),
        ),
        Layer(
            name="second", kind="conv", kernel="second/kernel", reads=(2,), writes=(3,), uses=2 * 3,
            extents=(fixed(1), fixed(1), a, b),
            window=Window(
                positions=(4, 5), kernel=(1, 1), strides=(2, 2), padding=((0, 0), (0, 0)),
                input_dilation=(1, 1), kernel_dilation=(1, 1), groups=1,
            ),
        ),
        Layer(
            name="last", kind="dense", kernel="last/kernel", reads=(0,), writes=(1,), uses=1,
            extents=(b, fixed(3)), final=True,
        ),
    )  # fmt: skip
    assert graph.groups == {"first": 6, "second": 4}
    assert graph.params["norm/scale"] == graph.state["batch_stats/norm/var"] == (a,)
    assert graph.params["last/bias"] == (fixed(3),)
    assert graph.kernels == ("first/kernel", "second/kernel")
    assert graph.reads == {"second/kernel": (2,), "last/kernel": (0,)}
    assert graph.owns("first/kernel") == (3,) and graph.owns("last/kernel") == ()
    assert (graph.image_shape, graph.classes) == ((7, 9, 2), 3)


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'vgg16'"):
        models.build("vgg19", 10)


def test_norm_normalises_a_batch_and_keeps_running_statistics():
    rng = np.random.default_rng(0)
    inputs = rng.normal(2.0, 3.0, (8, 5, 4, 6)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 6)).astype(np.float32)
    mean, variance = rng.uniform(0.5, 2.0, (2, 6)).astype(np.float32)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": variance},
    }
    out, new = parts.norm(True).apply(variables, inputs, mutable=["batch_stats"])
    wide = inputs.astype(np.float64)
    batch_mean, batch_variance = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    expected = (wide - batch_mean) / np.sqrt(batch_variance + 1e-5) * scale + bias
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.9 * mean + 0.1 * batch_mean, rtol=1e-4)
    np.testing.assert_allclose(
        new["batch_stats"]["var"], 0.9 * variance + 0.1 * batch_variance, rtol=1e-4
    )
    running = np.asarray(parts.norm(False).apply(variables, inputs))
    expected = (wide - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(running, expected, atol=1e-4)


def test_a_residual_block_is_its_formula():
    """Checks relu(x + norm(conv(relu(norm(conv(x)))))), with norms that are the identity."""
    block = resnet.Block(5, 1)
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
        "batch_stats": {norm: {"mean": zeros, "var": ones} for norm in norms},
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
    np.testing.assert_allclose(parts.standardize(jnp.array([0.0, 0.5, 1.0])), [-2, 0, 2])


def test_a_network_is_measured_in_whole_float32(monkeypatch):
    """Without a precision GPUs and TPUs round factors. Gradients inherit the precision."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = named("resnet8", 1.0, (8, 8, 1), 10)
    variables, images = abstract_variables(model), jnp.zeros((2, 8, 8, 1))
    apply = inference(model.network)
    program = jax.make_jaxpr(
        lambda v, images: jax.value_and_grad(lambda x: apply(v, x).sum())(images)
    )(variables, images)
    products = [
        equation for equation in str(program).split(" = ")
        if equation.startswith(("conv_general_dilated", "dot_general"))
    ]  # fmt: skip
    assert len(products) == 2 * len(model.graph.layers)
    assert all("HIGHEST" in product for product in products)
