"""The layout of the Hugging Face hub: files for other tools, networks by name, and refusals."""

import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from baseline_nets import Net

import irp_jax as irp
from irp_jax import models, traced
from irp_jax import network as networks
from irp_jax.checkpoint import digest
from irp_jax.inference import layout
from irp_jax.inference.function import inference
from irp_jax.pruning import cost
from irp_jax.report.robustbench import Paper, robustbench

RESULTS = Path(__file__).parents[1] / "results"
ZOO = RESULTS / "zoo"
DIGITS = ZOO / "resnet20-digits-0.16"


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """Makes a model of this package tiny, because tracing one takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet8", lambda scale, classes, act: Net(4, 4, classes))
        yield


@pytest.fixture(scope="module")
def network(tiny):
    """Returns a network of this package with random weights."""
    known = traced.named("resnet8", 0.25, (6, 6, 1), 3)
    params, state = jax.device_get(known.init(jax.random.key(0)))
    groups = dict(known.graph.groups)
    record = {
        **json.loads((DIGITS / "config.json").read_text()),
        "model": {"name": "resnet8", "width": 0.25, "activation": "relu"},
        "class_names": ["a", "b", "c"], "image_shape": [6, 6, 1],
        "groups": groups, "keep_counts": groups, "cost": cost.report(known.graph, groups),
    }  # fmt: skip
    for name in ("library_name", "format", "network_sha256"):
        del record[name]
    return networks.Network(
        apply=inference(known.network), record=record,
        variables={"params": params, "batch_stats": state},
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "network"
    network.save(folder)
    (folder / "README.md").write_text("a card")
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "network"))


def pixels(count=5):
    return np.random.default_rng(0).integers(0, 256, (count, 6, 6, 1), np.uint8)


def refusal(place):
    with pytest.raises(irp.UserError) as caught:
        irp.load_model(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the files -----------------------------------------------------------------------------------


def test_a_network_comes_back_to_the_bit(network, saved, tmp_path):
    found = irp.load_model(saved)
    np.testing.assert_array_equal(found(pixels()), network(pixels()))
    assert (found.record, found.epsilon, found.class_names) == (
        network.record, 0.1, ("a", "b", "c"),
    )  # fmt: skip
    found.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_what_was_loaded_has_gradients_to_attack_with(network, saved):
    images = jnp.asarray(pixels() / np.float32(255))
    found, expected = (
        jax.jit(jax.grad(lambda x, net=net: net.apply(net.variables, x)[:, 0].sum()))(images)
        for net in (irp.load_model(saved), network)
    )
    np.testing.assert_array_equal(found, expected)
    assert float(jnp.abs(expected).max()) > 1e-4


def test_numpy_and_safetensors_read_the_weights(network, saved):
    arrays = safetensors.numpy.load_file(saved / "model.safetensors")
    kinds = {"params": "params", "state": "batch_stats"}
    assert len(arrays) == sum(len(network.variables[place]) for place in kinds.values())
    for key, array in arrays.items():
        kind, _, name = key.partition("/")
        np.testing.assert_array_equal(array, network.variables[kinds[kind]][name])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,  # not contiguous
        np.float64(3.5),
        np.zeros((0, 4), np.int64),
        np.array([True, False]),
        np.array([-1, 2], np.int8),
        np.array([1.5, -2.0], jnp.bfloat16),
        jax.random.normal(jax.random.key(0), (3, 2), jnp.float16),
    ],
    ids=lambda array: f"{array.dtype}{np.shape(array)}",
)
def test_arrays_of_every_type_and_shape_come_back(tmp_path, network, array):
    variables = {"params": {"a/b": array}, "batch_stats": {}}
    layout.write(tmp_path / "x", layout.packed(network.record, variables, None))
    record, found, function = layout.read(tmp_path / "x")
    back = found["params"]["a/b"]
    assert (record, function, found["batch_stats"]) == (network.record, None, {})
    assert (back.dtype, back.shape) == (array.dtype, np.shape(array))
    np.testing.assert_array_equal(back, np.asarray(array))


def test_the_onnx_file_is_of_the_same_network():
    onnx = pytest.importorskip("onnx")
    for folder in ZOO.iterdir():
        facts = {each.key: each.value for each in onnx.load(folder / "model.onnx").metadata_props}
        record = json.loads((folder / "config.json").read_text())
        assert facts["network_sha256"] == record["network_sha256"]


# ---- damaged, foreign and newer files ------------------------------------------------------------


def test_weights_cut_anywhere_are_refused(copied):
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(copied)


def test_one_changed_bit_of_the_weights_is_refused(copied):
    path = copied / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "damaged" in refusal(copied)


def test_weights_of_another_network_are_refused(copied):
    shutil.copy(ZOO / "resnet20-cifar10-0.04M" / "model.safetensors", copied)
    assert "another network" in refusal(copied)


def test_a_network_of_another_library_is_refused_and_never_replaced(network, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    arrays = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "irp_jax" in refusal(tmp_path)
    with pytest.raises(irp.UserError, match="holds something else"):
        network.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named(copied, name):
    (copied / name).unlink()
    assert name in refusal(copied)


def test_the_format_of_a_newer_version_is_named(copied):
    record = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**record, "format": 99, "more": 1}))
    assert "99" in refusal(copied)


def test_a_folder_of_a_former_format_is_told(tmp_path):
    (tmp_path / "network.json").write_text('{"format": 3}')
    assert "older version" in refusal(tmp_path)


# ---- networks by name ----------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Returns huggingface_hub without a network, and with an empty cache."""
    package = pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return package


def cached(folder, cache, revision):
    """Puts a folder into the cache of huggingface_hub, as if it had been downloaded."""
    place = cache / "models--owner--small"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(commit)


def test_a_network_is_loaded_by_its_name(hub, network, saved, copied, tmp_path):
    record = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**record, "epochs": 7}))
    cached(saved, tmp_path / "cache", "main")
    cached(copied, tmp_path / "cache", "v2")
    found = irp.load_model("hf-hub:owner/small")
    assert digest(found.variables) == digest(network.variables)
    assert found.epoch == network.epoch
    assert irp.load("hf-hub:owner/small@v2").epoch == 7


def test_only_the_files_of_a_network_are_downloaded(hub, network, saved, tmp_path, monkeypatch):
    """A stand-in for the download gives what was asked for, as the hub does."""
    asked = []

    def download(repo_id, *, revision=None, allow_patterns=None):
        asked.append((repo_id, revision))
        for name in allow_patterns:
            if (saved / name).exists():
                shutil.copy(saved / name, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    found = irp.load_model("hf-hub:owner/name")
    assert digest(found.variables) == digest(network.variables)
    assert asked == [("owner/name", None)]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"config.json", "model.safetensors"}, "and no README.md"


def test_a_network_that_cannot_be_downloaded_is_told(hub):
    assert "hf-hub:owner/name" in refusal("hf-hub:owner/name")


def test_a_repository_without_a_network_is_told(hub, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text("{}")
    cached(tmp_path / "text", tmp_path / "cache", "main")
    assert "model.safetensors" in refusal("hf-hub:owner/small")


@pytest.mark.parametrize(
    "name",
    ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:a/../b", "hf-hub:a/b@", "hf-hub:a b/c"],
)
def test_what_is_no_name_is_refused_before_any_download(name):
    assert "OWNER/NAME" in refusal(name)


def test_without_the_package_the_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'irp_jax[hub]'" in refusal("hf-hub:owner/name")


# ---- the card and RobustBench's list ------------------------------------------------------------


def test_the_hub_reads_the_accuracies_of_a_card():
    hub = pytest.importorskip("huggingface_hub")
    for folder in ZOO.iterdir():
        card = hub.ModelCard.load(folder / "README.md")
        assert card.data.library_name == "irp_jax"
        assert card.data.model_name == folder.name
        rows = [line.split(" | ") for line in card.text.splitlines() if "`bin/evaluate" in line]
        shown = {row[0].strip("| "): float(row[1]) for row in rows}
        for result in card.data.eval_results:
            name = result.metric_name.partition(", first")[0]
            assert 100 * result.metric_value == pytest.approx(shown.pop(name), abs=0.006)
            assert f"for {result.dataset_name}," in card.text
        assert not shown


KEYS = {
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue",
    "architecture", "eps", "clean_acc", "reported", "autoattack_acc",
}  # fmt: skip


def test_robustbench_lists_autoattack_on_all_test_images_only():
    found = json.loads(
        (RESULTS / "tables" / "resnet20-cifar10-0.04M-params-seed0-d74a5d.json").read_text()
    )
    paper = Paper(title="A title", authors="A, B", link="https://example.org", venue="2026")
    listed = robustbench(found, paper)
    assert set(listed) == KEYS
    assert (listed["eps"], listed["clean_acc"], listed["reported"]) == ("8/255", "63.01", "36.18")
    assert (listed["name"], listed["authors"], listed["autoattack_acc"]) == ("A title", "A, B", "")
    assert listed["additional_data"] is False and listed["number_forward_passes"] == 1
    found["attacks"]["autoattack"]["attack"]["images"] = 10_000
    whole = robustbench(found, paper)
    assert (whole["autoattack_acc"], whole["reported"]) == ("33.40", "33.40")
    found["attacks"]["autoattack"]["attack"]["epsilon"] = 0.01
    assert robustbench(found, paper) == listed, "another radius is another threat"
