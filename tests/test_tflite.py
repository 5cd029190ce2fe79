"""Networks as LiteRT files: LiteRT against JAX and onnxruntime.

Tests with the converter install it once in the user's cache, and skip where they cannot.
"""

import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import graph_nets
import jax
import numpy as np
import pytest
from PIL import Image
from test_export import FAMILIES, SHAPE, ZOO, drawn, images, small, traced_family

import irp_jax
from irp_jax import data
from irp_jax.cli.publish import publish
from irp_jax.errors import UserError
from irp_jax.export import artifact, litert_converter, tflite, verify
from irp_jax.export.file import serialized
from irp_jax.models import mobilenet
from irp_jax.models.vgg import VGG
from irp_jax.pruning import compaction

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed():
    pytest.importorskip("ai_edge_litert")
    try:
        return litert_converter.install()
    except UserError as error:
        pytest.skip(str(error))


def assert_same(apply, shape=SHAPE):
    run, nodes, _ = tflite.load(tflite.serialized(apply, shape), threads=1)
    given = images(7, shape)
    logits = np.asarray(jax.jit(apply)(given))
    found = run(given)
    assert found.shape == logits.shape and nodes > 2
    assert np.abs(found - logits).max() <= 1e-4
    assert (found.argmax(-1) == logits.argmax(-1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_our_pruned_networks_compute_the_same_in_litert(family, monkeypatch, installed):
    monkeypatch.setattr(mobilenet, "STAGES", ((1, 4, 1, 1), (6, 6, 2, 2)))
    known = traced_family(family)
    params, state = drawn(jax.device_get(known.init(jax.random.key(0))))
    random = np.random.default_rng(1)
    kept = {
        name: np.sort(random.permutation(size)[: max(1, round(0.6 * size))])
        for name, size in known.graph.groups.items()
    }
    params = compaction.compact_params(known.graph, params, kept)
    state = compaction.compact_params(known.graph, state, kept)
    assert_same(lambda x: known.network(params, state, x, train=False)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["channel_shuffle", "depthwise", "group_norm", "squeeze_and_excitation",
     "weight_standardisation"],
)  # fmt: skip
def test_networks_that_were_not_written_here(name, installed):
    net = graph_nets.CASES[name].model
    variables = drawn(jax.device_get(net.init(jax.random.key(0), images(1), train=False)))
    assert_same(lambda x: net.apply(variables, x, train=False))


# ---- a file --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return irp_jax.load(ZOO)


@pytest.mark.slow
def test_a_file_is_small_says_what_it_is_and_computes_the_same(digits, tmp_path, installed):
    path = tmp_path / "model.tflite"
    digits.export(path, "tflite")
    found = artifact.load(path)
    assert (found.format, found.layout) == ("tflite", "NHWC")
    # Norms and activations are part of the convolutions.
    assert found.nodes <= 40
    assert path.stat().st_size < 1.3 * 4 * digits.cost["params"] + 10_000
    assert json.loads(found.facts["classes"]) == [str(digit) for digit in range(10)]
    assert int(found.facts["macs"]) == digits.cost["macs"]
    assert list(tmp_path.iterdir()) == [path]
    found = data.load("digits").test
    given = found.images[:50], found.labels[:50]
    figures = verify(path, digits, given, steps=1, queries=1, rounds=1)
    assert figures["agreement"] == 1 and figures["max_difference"] <= 1e-4
    assert figures["natural"]["file"] == figures["natural"]["network"]
    assert figures["artifact"]["dense_bytes"] > figures["artifact"]["bytes"]
    with pytest.raises(UserError, match="takes images"):
        verify(path, small(), given)


@pytest.mark.slow
def test_an_8_bit_file_computes_as_its_emulation(digits, tmp_path, installed):
    from ai_edge_litert.interpreter import Interpreter

    found = data.load("digits")
    rounded = digits.quantize(found.train.images[:256])
    path = tmp_path / "model8.tflite"
    rounded.export(path, "tflite")
    file = artifact.load(path)
    given = np.asarray(found.test.images[:200], np.float32) / 255
    here, exact = (np.asarray(network(given)) for network in (rounded, digits))
    there = file(given)
    assert (there.argmax(-1) == here.argmax(-1)).mean() >= 0.99
    # It is nearer to the emulation than to the network in float32, and nearer still to the 8-bit
    # file of another runtime.
    apart = np.abs(there - exact).mean()
    assert np.abs(there - here).mean() < 0.7 * apart
    other = artifact.from_bytes(serialized(rounded, "onnx"), "onnx")(given)
    assert np.abs(there - other).mean() < 0.3 * apart
    assert path.stat().st_size < 0.6 * 4 * digits.cost["params"] + 10_000
    runner = Interpreter(model_path=str(path))
    runner.allocate_tensors()
    details = {each["index"]: each for each in runner.get_tensor_details()}
    layers = [each for each in runner._get_ops_details() if "CONV_2D" in each["op_name"]]
    assert len(layers) == 21
    for layer in layers:
        kernel = details[layer["inputs"][1]]
        axis = kernel["quantization_parameters"]["quantized_dimension"]
        levels = np.abs(runner.get_tensor(kernel["index"]).astype(int))
        others = tuple(each for each in range(4) if each != axis)
        # The levels of the emulation: each output channel has a weight of 64 and none above.
        assert (levels.max(others) == 64).all()


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys, installed):
    monkeypatch.chdir(tmp_path)
    network = irp_jax.load(ZOO.with_name("resnet20-cifar10-0.04M"))
    network.export("model.tflite", "tflite")
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save("photo.png")
    page = (ROOT / "docs" / "deploy.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "litert" in code]
    exec(compile(code, "example", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.split()[0] in network.class_names


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_published_network_has_its_file_for_litert(tmp_path, monkeypatch, installed):
    monkeypatch.chdir(tmp_path)
    results = ROOT / "results" / "quickstart" / "resnet20-digits-0.16-seed0.json"
    for _ in range(2):  # the second time it is replaced
        publish([f"--run={ZOO}", f"--results={results}", "--into=mine", "--tflite"])
    network = irp_jax.load_model("mine")
    test = data.load("digits").test.images[:50]
    logits = artifact.load("mine/model.tflite")(np.float32(test) / 255)
    assert np.abs(logits - np.asarray(network(test))).max() <= 1e-4


@pytest.mark.slow
def test_latencies_of_layers_are_measured_in_litert(installed):
    net = VGG(((4,), (6,)), 3)
    table = irp_jax.measure_latency(net, SHAPE, runtime="litert", rounds=2)
    assert (table.runtime, table.threads, table.multiple) == ("litert", 1, 1)
    assert table.runtime_version == version("ai-edge-litert")
    assert len(table.checks) == 21 and all(row["measured"] > 0 for row in table.checks)
    graph = irp_jax.describe(net, SHAPE)
    assert {name for entry in table.layers for name in entry.layers} == {
        layer.name for layer in graph.layers
    }
    with pytest.raises(UserError, match="multiple is for onnxruntime"):
        irp_jax.measure_latency(net, SHAPE, runtime="litert", multiple=4)


@pytest.mark.slow
def test_what_litert_cannot_compute_is_named(installed):
    net = graph_nets.CASES["unknown_primitive"].model
    variables = net.init(jax.random.key(0), images(1), train=False)
    with pytest.raises(UserError, match=r"sort.*onnx"):
        tflite.serialized(lambda x: net.apply(variables, x, train=False), SHAPE)


def test_without_the_extra_the_command_for_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    path = tmp_path / "model.tflite"
    with pytest.raises(UserError, match=r"pip install 'irp_jax\[litert\]'"):
        small().export(path, "tflite")
    assert not path.exists()
    path.write_bytes(b"1234TFL3")
    with pytest.raises(UserError, match=r"pip install 'irp_jax\[litert\]'"):
        artifact.load(path)


def test_a_damaged_file_is_refused(tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / "model.tflite"
    for content in (b"no model", b"1234TFL3", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="LiteRT cannot run the file"):
            artifact.load(path)


def test_a_file_whose_operators_lack_inputs_is_refused():
    pytest.importorskip("ai_edge_litert")
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    code, tensors = schema.OperatorCodeT(), [schema.TensorT() for _ in range(2)]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SUB
    for tensor in tensors:
        tensor.shape, tensor.name, tensor.buffer = [1, 2], "t", 0
    operator.inputs, operator.outputs = [0], [1]  # a difference of one tensor
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [operator], [0], [1]
    model.version, model.buffers = 3, [schema.BufferT()]
    model.subgraphs, model.operatorCodes = [graph], [code]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(UserError, match="LiteRT cannot run the file") as error:
        artifact.from_bytes(bytes(builder.Output()), "tflite")
    assert "\n" not in str(error.value)


def test_a_converter_that_cannot_be_installed_leaves_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pip.py").write_text("open('was-run', 'w')")  # of a stranger
    killed = litert_converter.folder().parent / "unfinished-by-another"
    killed.mkdir(parents=True)
    with pytest.raises(UserError, match="PIP_FIND_LINKS") as caught:
        litert_converter.install()
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err.count("\n") == 1
    assert not litert_converter.folder().exists() and not (tmp_path / "was-run").exists()
    left = [path for path in litert_converter.folder().parent.iterdir() if path.name != ".lock"]
    assert left == []


def test_the_pins_are_of_one_version_of_the_converter():
    lines = litert_converter.pins().read_text().splitlines()
    assert sum(line.startswith("litert-converter==") for line in lines) == 1
