"""8-bit networks: rounding by hand, the emulation beside onnxruntime, gradients, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from baseline_nets import Net
from test_cli import refusal

import irp_jax as irp
from irp_jax import prng, traced
from irp_jax.cli import export
from irp_jax.errors import UserError
from irp_jax.export import artifact
from irp_jax.inference.function import inference
from irp_jax.network import Network
from irp_jax.pruning import cost
from irp_jax.quantization import Quantization, calibrate, fake

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(16, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return Net(8, 8, 10)


@pytest.fixture(scope="module")
def network(model):
    known = traced.trace(model, SHAPE, 10)
    params, state = jax.device_get(jax.jit(known.init)(prng.key(0)))
    groups = dict(known.graph.groups)
    record = {
        "model": known.spec, "class_names": list("abcdefghij"), "image_shape": list(SHAPE),
        "groups": groups, "keep_counts": groups, "cost": cost.report(known.graph, groups),
        "epochs": 0, "trained": {"epsilon": 0.1},
    }  # fmt: skip
    variables = {"params": params, "batch_stats": state}
    return Network(apply=inference(known.network), variables=variables, record=record)


def test_activations_are_rounded_to_the_nearest_of_256_levels():
    values = jnp.array([-9.0, -1.0, 0.0, 0.004, 0.006, 1.55, 9.0])
    scale, zero_point = fake.scale_of(-1.0, 1.55)
    assert (scale, zero_point) == (pytest.approx(0.01), 100)
    expected = [-1.0, -1.0, 0.0, 0.0, 0.01, 1.55, 1.55]
    np.testing.assert_allclose(fake.activations(values, -1.0, 1.55), expected, atol=1e-6)


def test_the_gradient_is_one_inside_of_the_range_and_zero_outside():
    slope = jax.grad(lambda x: fake.activations(x, -1.0, 1.55).sum())
    np.testing.assert_array_equal(slope(jnp.array([-9.0, 0.3, 9.0])), [0, 1, 0])
    kernel = jnp.array([[0.3, -2.0], [1.0, 0.5]])
    ones = jax.grad(lambda w: fake.weights(w, (1,)).sum())(kernel)
    np.testing.assert_array_equal(ones, np.ones((2, 2)))


def test_a_factor_of_each_channel_before_or_after_the_rounding_of_weights_is_the_same():
    rng = np.random.default_rng(1)
    kernel, factor = rng.normal(size=(3, 3, 4, 5)).astype(np.float32), rng.normal(size=5)
    factor = factor.astype(np.float32)
    rounded = fake.weights(jnp.asarray(kernel), (3,)) * factor
    np.testing.assert_allclose(fake.weights(jnp.asarray(kernel * factor), (3,)), rounded, atol=1e-6)


def test_the_file_computes_what_the_emulation_does(network, model, images, tmp_path):
    small = network.quantize(images, model=model)
    small.export(tmp_path / "m.onnx", multiple=1, model=model)
    there = artifact.load(tmp_path / "m.onnx")(images)
    here, exact = np.asarray(small(images)), np.asarray(network(images))
    largest = np.abs(exact).max()
    assert np.abs(here - there).max() < 0.03 * largest
    assert 0 < np.abs(here - exact).max() < 0.2 * largest
    stored = onnx.load(tmp_path / "m.onnx")
    kernels = [t for t in stored.graph.initializer if len(t.dims) > 1]
    assert kernels and all(t.data_type == onnx.TensorProto.INT8 for t in kernels)
    written = {p.key: p.value for p in stored.metadata_props}
    assert Quantization.of(json.loads(written["quantization"])) == small.quantization


def test_the_emulation_has_gradients_like_those_of_the_network(network, model, images):
    small = network.quantize(images, model=model)

    def slope(net):
        return jax.grad(lambda x: net.apply(net.variables, x).std())(jnp.asarray(images))

    one, other = np.ravel(slope(network)), np.ravel(slope(small))
    assert one @ other > 0.9 * np.linalg.norm(one) * np.linalg.norm(other)


def test_a_quantized_network_can_be_taken_back(network, model, images):
    small = network.quantize(images, model=model)
    back = small.with_quantization(None, model=model)
    np.testing.assert_array_equal(back(images), network(images))
    assert network.with_quantization(None) is network


def test_a_quantized_network_is_saved_and_loaded(network, model, images, tmp_path):
    record = {
        **network.record, "granularity": "channel",
        "trained": {**network.record["trained"], "dataset": "x", "data_dir": None,
                    "defense": "none", "method": "width", "seed": 0},
    }  # fmt: skip
    small = dataclasses.replace(network, record=record).quantize(images, model=model)
    small.save(tmp_path / "small")
    for given in (model, None):  # None takes the function that was saved with it
        back = irp.load(tmp_path / "small", model=given)
        np.testing.assert_allclose(back(images), small(images), atol=1e-5)
        assert back.quantization == small.quantization


DAMAGED = [None, 3, {}, {"scheme": "int8"}] + [
    {"scheme": "int8", "ranges": ranges}
    for ranges in ([], {"a": 1}, {"a": [1]}, {"a": [1, "x"]}, {"a": [2, 1]}, {"a": [0, 1e999]})
]


@pytest.mark.parametrize("record", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_ranges_are_refused(record):
    with pytest.raises(UserError):
        Quantization.of(record)


@pytest.mark.parametrize(
    "flags",
    [
        ["--data-dir=there"], ["--calibration-images=9"], ["--quantize=int8", "--format=stablehlo"],
        ["--quantize=int8", "--calibration-images=0"], ["--quantize=int4"],
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused_before_anything_is_written(
    flags, capsys, monkeypatch, tmp_path
):
    where = [f"--out={tmp_path / 'm.onnx'}", "--checkpoint=results/zoo/resnet20-digits-0.16"]
    line = refusal(capsys, monkeypatch, export.export, *where, *flags)
    assert "--" in line or "quantize" in line
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused(network, model, images):
    with pytest.raises(UserError, match="model"):
        network.quantize(images)
    with pytest.raises(UserError, match="images"):
        network.quantize(images[:, :4], model=model)
    with pytest.raises(UserError, match="int4"):
        Quantization.of({"scheme": "int4", "ranges": {}})
    with pytest.raises(UserError, match="255"):
        network.quantize(255 * images, model=model)
    unknown = dataclasses.replace(network, record={**network.record, "quantization": {}})
    with pytest.raises(UserError):
        _ = unknown.quantization


def test_sums_of_two_layers_are_rounded_and_sums_within_an_activation_are_not():
    def residual(variables, images):
        first = jax.nn.gelu(images.reshape(len(images), -1) @ variables["a"])
        return (jax.nn.gelu(first @ variables["b"]) + first) @ variables["c"]

    rng = np.random.default_rng(0)
    sizes = {"a": (48, 8), "b": (8, 8), "c": (8, 3)}
    arrays = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    known = traced.trace((residual, arrays), (4, 4, 3))
    variables = dict(zip(("params", "batch_stats"), known.init(prng.key(0)), strict=True))
    images = rng.uniform(size=(2, 4, 4, 3)).astype(np.float32)
    found = [name for name, _, _ in calibrate(known.network, variables, images).ranges]
    # The inputs of the three products, among them one operand of the sum, and its other operand.
    assert sorted("add" in name for name in found) == [False, False, False, True]
