"""Networks as files: ONNX against onnxruntime, StableHLO against JAX, and what verify says."""

import json
import os
import sys
from pathlib import Path

import graph_nets
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import irp_jax
from irp_jax import checkpoint, traced
from irp_jax import network as networks
from irp_jax.cli import common
from irp_jax.cli import export as command
from irp_jax.errors import UserError
from irp_jax.export import onnx as exporting
from irp_jax.export import stablehlo, verify
from irp_jax.inference.function import inference
from irp_jax.models import VGG, DenseNet, MobileNetV2, ResNet, WideResNet, mobilenet
from irp_jax.pruning import compaction, cost

ZOO = Path(__file__).parents[1] / "results" / "zoo" / "resnet20-digits-0.16"
SHAPE = (8, 8, 3)
FAMILIES = {
    "resnet": ResNet((1, 1), (4, 6), 5, "silu"),
    "wide resnet": WideResNet((1, 1), (4, 4, 6), 5, "gelu"),
    "vgg": VGG(((4,), (6,)), 5, "softplus"),
    "mobilenet": MobileNetV2((4, 4, 6, 8), 5),
    "densenet": DenseNet((1, 2), 4, 5),
}


def images(number, shape=SHAPE):
    return np.random.default_rng(number).uniform(size=(number, *shape)).astype(np.float32)


def drawn(arrays):
    """Other values than a network begins with: batch norms that do something."""
    random = np.random.default_rng(0)

    def value(array):
        if np.ndim(array) < 2:
            return random.uniform(0.5, 1.5, np.shape(array)).astype(np.float32)
        return np.asarray(array)

    return jax.tree.map(value, arrays)


def run_file(content, given):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": given})[0]


def ops(content):
    return [node.op_type for node in onnx.load_model_from_string(content).graph.node]


def assert_same(content, apply, shape=SHAPE, layout=(0, 1, 2, 3)):
    """One file serves every number of images, and onnxruntime agrees with JAX."""
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    given = images(7, shape)
    logits = np.asarray(jax.jit(apply)(given))
    for number in (1, 7):
        found = run_file(content, np.ascontiguousarray(given[:number].transpose(layout)))
        assert found.shape == (number, logits.shape[1])
        assert np.abs(found - logits[:number]).max() <= 1e-4
        assert (found.argmax(-1) == logits[:number].argmax(-1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_our_networks_compute_the_same_in_onnxruntime(family, granularity, monkeypatch):
    monkeypatch.setattr(mobilenet, "STAGES", ((1, 4, 1, 1), (6, 6, 2, 2)))
    known = traced_family(family)
    params, state = drawn(jax.device_get(known.init(jax.random.key(0))))
    random = np.random.default_rng(1)
    if granularity == "channel":
        kept = {
            name: np.sort(random.permutation(size)[: max(1, round(0.6 * size))])
            for name, size in known.graph.groups.items()
        }
        params = compaction.compact_params(known.graph, params, kept)
        state = compaction.compact_params(known.graph, state, kept)
    else:
        params = {
            name: array * (random.uniform(size=array.shape) < 0.5) if array.ndim > 1 else array
            for name, array in params.items()
        }
        params = {name: np.asarray(array, np.float32) for name, array in params.items()}

    def apply(x):
        return known.network(params, state, x, train=False)[0]

    content = exporting.serialized(apply, SHAPE)
    assert_same(content, apply)
    assert ops(content).count("Transpose") == 1


def traced_family(family, cache={}):  # noqa: B006
    if family not in cache:
        cache[family] = traced.trace(FAMILIES[family], SHAPE, 5)
    return cache[family]


# What these have in common: each computes in a way that no model of ours does.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "channel_shuffle", "concatenation", "coordinates", "custom_vjp", "depthwise",
        "gated_linear_unit", "group_norm", "learned_constants", "option_a_shortcut", "scan",
        "softmax_over_channels", "squeeze_and_excitation", "transposed_convolution",
        "unknown_primitive", "weight_standardisation",
    ],
)  # fmt: skip
def test_networks_that_were_not_written_here(name):
    net = graph_nets.CASES[name].model
    variables = drawn(jax.device_get(net.init(jax.random.key(0), images(1), train=False)))

    def apply(x):
        return net.apply(variables, x, train=False)

    assert_same(exporting.serialized(apply, SHAPE), apply)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["channels_first", "vmapped"])
def test_plain_functions_of_arrays(name):
    function, arrays = graph_nets.CASES[name].model

    def apply(x):
        return function(arrays, x)

    assert_same(exporting.serialized(apply, SHAPE), apply)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vision_transformer", "two_views", "branches"])
def test_the_number_of_images_may_be_used_in_a_traced_network(name):
    known = traced.trace(graph_nets.CASES[name].model, SHAPE)
    params, state = known.init(jax.random.key(0))

    def apply(x):
        return known.network(params, state, x, train=False)[0]

    assert_same(exporting.serialized(apply, SHAPE), apply)


@pytest.mark.slow
def test_networks_of_nnx_and_equinox():
    import equinox as eqx
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.out = nnx.Linear(4, 5, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    class Other(eqx.Module):
        conv: eqx.nn.Conv2d
        out: eqx.nn.Linear

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(3, 4, 3, padding=1, key=key)
            self.out = eqx.nn.Linear(4, 5, key=key)

        def __call__(self, x):
            return self.out(jax.nn.relu(self.conv(x)).mean((1, 2)))

    for model in (Net(nnx.Rngs(0)), Other(jax.random.key(0))):
        known = traced.trace(model, SHAPE)
        params, state = known.init(jax.random.key(0))

        def apply(x, known=known, params=params, state=state):
            return known.network(params, state, x, train=False)[0]

        assert_same(exporting.serialized(apply, SHAPE), apply)


# ---- what is in a file ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return irp_jax.load(ZOO)


@pytest.fixture(scope="module")
def file(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    digits.export(path)
    return path


def test_batch_norms_are_in_the_convolutions_and_the_standardisation_is_not(file, digits):
    content = file.read_bytes()
    found = ops(content)
    assert 50 <= len(found) <= 60
    assert found.count("Conv") == 21 and found.count("Transpose") == 1
    # (x - 0.5) / 0.25 stays before the zero padding of the stem.
    assert found[:4] == ["Mul", "Add", "Transpose", "Conv"]
    assert len(content) < 1.3 * 4 * digits.cost["params"] + 10_000
    assert_same(content, lambda x: digits.apply(digits.variables, x), (8, 8, 1))


def test_channels_come_in_fours_where_onnxruntime_is_faster_so(file):
    arrays = {each.name: each.dims for each in onnx.load(file).graph.initializer}
    convs = [node for node in onnx.load(file).graph.node if node.op_type == "Conv"]
    assert all(arrays[node.input[1]][0] % 4 == 0 for node in convs)


def test_a_file_says_what_it_is(file, digits):
    model = onnx.load(file)
    facts = {each.key: each.value for each in model.metadata_props}
    assert json.loads(facts["classes"]) == [str(digit) for digit in range(10)]
    assert (facts["input_range"], facts["input_layout"]) == ("[0, 1]", "NHWC")
    assert float(facts["epsilon"]) == 0.1 and facts["irp_jax_version"] == irp_jax.__version__
    assert int(facts["macs"]) == digits.cost["macs"]
    assert int(facts["params"]) == digits.cost["params"]
    assert facts["commit"] and "natural_accuracy" not in facts
    assert [each.version for each in model.opset_import] == [exporting.OPSET] == [17]


def test_channels_first_needs_no_transposition():
    network = small()

    def apply(x):
        return network.apply(network.variables, x)

    content = exporting.serialized(apply, (6, 6, 1), layout="NCHW")
    assert "Transpose" not in ops(content)
    assert_same(content, apply, (6, 6, 1), layout=(0, 3, 1, 2))


def test_nodes_are_named_after_layers(file):
    names = [node.name for node in onnx.load(file).graph.node]
    assert any(name.startswith("ResNet/stage1_block0/conv1") for name in names)


# ---- verify --------------------------------------------------------------------------------------


def small(channels=4):
    """A network of a few layers, as `irp_jax.load` gives it."""
    known = traced.trace(VGG(((channels,),), 3), (6, 6, 1), 3, spec={"class": "Small"})
    params, state = jax.device_get(known.init(jax.random.key(0)))
    record = {
        "model": {"class": "Small"}, "class_names": ["a", "b", "c"], "image_shape": [6, 6, 1],
        "trained": {"epsilon": 0.1, "dataset": "none", "data_dir": None},
        "cost": cost.report(known.graph, {}), "epochs": 1, "groups": {},
        "keep_counts": {},
    }  # fmt: skip
    return networks.Network(
        apply=inference(known.network), record=record,
        variables={"params": params, "batch_stats": state},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_verify_finds_file_and_network_alike(format, tmp_path):
    network = small()
    path = tmp_path / f"model.{format}"
    network.export(path, format)
    given = images(20, (6, 6, 1)), np.arange(20) % 3
    figures = verify(path, network, given, steps=2, queries=3, rounds=2)
    assert figures["agreement"] == 1 and figures["max_difference"] <= 1e-4
    for key in ("natural", "pgd"):
        assert figures[key]["file"] == figures[key]["network"]
    assert 0 <= figures["square"]["file"] <= figures["natural"]["file"]
    assert figures["artifact"]["bytes"] == path.stat().st_size
    rows = {(row["network"], row["batch"]) for row in figures["latency"]}
    assert rows == {("compact", 1), ("compact", 64)}
    with pytest.raises(UserError, match="of another network"):
        verify(path, small(5), given)


def test_a_stablehlo_file_names_no_folder_of_this_machine():
    shape = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    content = stablehlo.serialized(lambda x: jnp.tanh(x) @ x.T, shape)
    assert b"test_export.py" in content and str(Path(__file__).parent).encode() not in content


@pytest.mark.slow
def test_others_can_attack_a_stablehlo_file(tmp_path):
    network = small()
    network.export(tmp_path / "model.stablehlo", "stablehlo")
    function = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    given = jnp.asarray(images(3, (6, 6, 1)))
    there = jax.grad(lambda x: function.call(x).sum())(given)
    here = jax.grad(lambda x: network.apply(network.variables, x).sum())(given)
    assert np.abs(there - here).max() <= 1e-5
    facts = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert json.loads(facts["classes"]) == ["a", "b", "c"]


# ---- errors --------------------------------------------------------------------------------------


def refused(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        common.main(command.export)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.slow
def test_the_command_writes_and_verifies(tmp_path, monkeypatch, capsys):
    given = images(8, (6, 6, 1)), np.arange(8) % 3
    found = irp_jax.from_arrays(*given, *given, class_names=("a", "b", "c"))
    monkeypatch.setattr(command.loading, "load", lambda *_, **__: small())
    monkeypatch.setattr(command.data, "load", lambda *_, **__: found)
    run_folder, path, out = tmp_path / "run", tmp_path / "model.onnx", tmp_path / "figures.json"
    run_folder.mkdir()
    sha = checkpoint.digest(small().variables)
    results = {"network_sha256": sha, "accuracy": {"natural": 0.5, "pgd": 0.25}}
    (run_folder / "results.json").write_text(json.dumps(results))
    command.export([f"--checkpoint={run_folder}", f"--out={path}", "--layout=NCHW"])
    assert "written to" in capsys.readouterr().out
    facts = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert (facts["natural_accuracy"], facts["pgd_accuracy"]) == ("0.5", "0.25")
    command.export(
        ["verify", f"--artifact={path}", f"--checkpoint={run_folder}", "--steps=1", "--queries=1",
         "--rounds=1", f"--out={out}"]
    )  # fmt: skip
    assert "same predictions" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["agreement"] == 1 and figures["command"].startswith("bin/export verify")
    assert str(tmp_path) not in out.read_text()


def test_mistakes_are_one_line_and_leave_nothing(capsys, monkeypatch, tmp_path, file):
    def said(*arguments):
        return refused(capsys, monkeypatch, *arguments)

    out = tmp_path / "model.onnx"
    asked = [f"--checkpoint={ZOO}", f"--out={out}"]
    assert "did you mean 'onnx'" in said(*asked, "--format=onx")
    assert "did you mean 'NCHW'" in said(*asked, "--layout=NCWH")
    assert "for onnx" in said(*asked, "--format=stablehlo", "--layout=NCHW")
    assert "cannot write" in said(f"--checkpoint={ZOO}", f"--out={tmp_path}")
    assert "no checkpoint in" in said(f"--checkpoint={tmp_path}", f"--out={out}")
    verifying = ["verify", f"--checkpoint={ZOO}"]
    assert "there is no file" in said(*verifying, f"--artifact={out}")
    assert "--artifact is needed" in said(*verifying)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    assert "cannot run the file" in said(*verifying, f"--artifact={broken}")
    broken.unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused_first(digits, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        digits.export(tmp_path / "model.onnx")


def test_without_the_extra_the_command_for_it_is_named(monkeypatch, tmp_path):
    network = small()
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=r"pip install 'irp_jax\[onnx\]'"):
                network.export(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_cannot_be_written_is_named_with_its_layer():

    def apply(x):
        with jax.named_scope("head"):
            return jax.scipy.special.i0e(x).mean((1, 2))

    with pytest.raises(UserError, match=r"bessel_i0e.*, in head; --format=stablehlo"):
        exporting.serialized(apply, SHAPE)
    with pytest.raises(UserError, match="bfloat16"):
        exporting.serialized(lambda x: jnp.tanh(x.astype(jnp.bfloat16)).mean((1, 2)), SHAPE)
    with pytest.raises(UserError, match="for any number of images"):
        exporting.serialized(lambda x: x.mean((1, 2))[: int(x.shape[0])], SHAPE)


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.rules.RULES, "max", exporting.rules.minimum)
    with pytest.raises(UserError, match="would differ from the network"):
        small().export(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
