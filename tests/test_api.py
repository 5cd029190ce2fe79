"""The Python interface: a user's own network is trained, resumed, saved and loaded."""

import dataclasses
import functools
import importlib.util
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from event_files import points, points_of

import irp_jax as irp
from irp_jax import checkpoint, files
from irp_jax.data import limited
from irp_jax.export import artifact
from irp_jax.inference import layout

SETTINGS = {
    "budget": 0.4, "epochs": 3, "batch_size": 64, "prune_stop": 0.4, "defense": "fgsm",
    "guard": False, "checkpoint_every": 0.0, "progress": False, "learning_rate": 0.05,
}  # fmt: skip


class Net(nn.Module):
    """A user's own network of ten classes."""

    width: int = 8
    classes: int = 10

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.width, (3, 3), name="first")(images - 0.5)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        x = nn.relu(nn.Conv(12, (3, 3), strides=2, name="second")(x))
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


@functools.cache
def digits():
    """Returns a part of digits, with few training and test images."""
    whole = limited(irp.load_data("digits"), 256)
    return dataclasses.replace(whole, test=whole.test.take(np.arange(60)))


train = functools.partial(irp.train, dataset=digits(), **SETTINGS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns folder, network and callback rows of a run that was not interrupted."""
    folder, rows = tmp_path_factory.mktemp("api") / "run", []
    return folder, train(Net(), workdir=folder, callback=rows.append), rows


@pytest.fixture(scope="module")
def saved(finished, tmp_path_factory):
    """Returns a folder with the saved network."""
    folder = tmp_path_factory.mktemp("saved") / "small"
    finished[1].save(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """Returns a copy of the saved network, for tests that damage it."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def digest(network):
    return checkpoint.digest(network.variables)


def pixels(count=5):
    return digits().test.images[:count]


# ---- training ----------------------------------------------------------------------------------


def test_training_returns_a_compact_network(finished):
    folder, network, _ = finished
    assert network(pixels()).shape == (5, 10)
    as_floats = network(pixels().astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(network(pixels()), as_floats, atol=1e-5)
    assert network.cost["macs_ratio"] <= 0.4 and network.cost["params_ratio"] < 1
    assert set(network.keep_counts) == {"first", "second"}
    arrays = network.variables["params"]
    assert arrays["first/kernel"].shape == (3, 3, 1, network.keep_counts["first"])
    assert sum(array.size for array in arrays.values()) == network.cost["params"]
    assert network.variables["batch_stats"]["batch_stats/norm/mean"].shape == (
        network.keep_counts["first"],
    )
    assert (network.epoch, network.epsilon, network.image_shape) == (3, 0.1, (8, 8, 1))
    assert network.class_names == tuple("0123456789")
    assert repr(network).startswith("Network(Net, 10 classes, images (8, 8, 1), ")
    assert network.results == json.loads((folder / "results.json").read_text())


def test_the_callback_is_told_of_each_epoch(finished):
    _, network, rows = finished
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows == network.history
    assert {"loss", "natural", "fgsm", "pgd", "cost_ratio", "frozen"} <= set(rows[0])
    assert [row["frozen"] for row in rows] == [False, False, True]


def test_its_accuracies_are_those_of_the_results(finished):
    _, network, _ = finished
    report = network.evaluate(digits())
    assert report.natural == network.results["accuracy"]["natural"]
    assert report.robust == pytest.approx(network.results["accuracy"]["pgd"], abs=0.02)
    again = network.evaluate((pixels(60), digits().test.labels), "none")
    assert again.robust == report.natural


def test_the_same_call_returns_the_finished_network_bit_for_bit(finished):
    folder, network, _ = finished
    rows = []
    again = train(Net(), workdir=folder, callback=rows.append)
    assert rows == [] and again.history == network.history
    assert digest(again) == digest(network)
    np.testing.assert_array_equal(again(pixels()), network(pixels()))
    # The same budget in another notation is the same run.
    assert digest(train(Net(), workdir=folder, budget="0.40")) == digest(network)


def test_an_interrupted_run_resumes_to_the_same_network(finished, tmp_path):
    _, network, rows = finished

    def interrupt(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Net(), workdir=tmp_path, callback=interrupt)
    with pytest.raises(irp.UserError, match="from outside this package: give its model"):
        irp.load(tmp_path)
    halfway = irp.load(tmp_path, model=Net())
    assert halfway.epoch == 1 and halfway(pixels()).shape == (5, 10)
    later = []
    log = "tensorboard" if importlib.util.find_spec("tensorboardX") else ""
    again = train(Net(), workdir=tmp_path, callback=later.append, log_to=log)
    assert not log or points(tmp_path / "tensorboard") == points_of(again.history)
    assert [row["epoch"] for row in later] == [2, 3]
    assert [row["loss"] for row in again.history] == [row["loss"] for row in rows]
    assert digest(again) == digest(network)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"model": Net(width=9)}, "model_fingerprint"),
        ({"seed": 3}, "seed=default, not 3"),
        ({"budget": 0.5}, "budget=0.4, not 0.5"),
        ({"dataset": "other images"}, "dataset_sha256"),
        ({"variables": "other weights"}, "model_fingerprint"),
    ],
)
def test_a_folder_of_another_run_is_refused(finished, change, hint):
    if change.get("dataset"):
        change = {"dataset": dataclasses.replace(digits(), train=digits().train.take([0] * 256))}
    if change.get("variables"):
        change = {"variables": given(seed=5)}
    with pytest.raises(irp.UserError, match=f"holds a different run .*{hint}"):
        train(change.pop("model", Net()), workdir=finished[0], **change)


def given(seed):
    init = jax.jit(lambda key: Net().init(key, jnp.zeros((1, 8, 8, 1)), train=False))
    return jax.device_get(init(jax.random.key(seed)))


def test_training_starts_from_the_weights_that_are_given(no_attacks):
    """With a tiny learning rate the weights stay, and the smallest are pruned."""
    start = given(seed=7)
    network = train(
        Net(), variables=start, epochs=2, method="magnitude", granularity="weight",
        learning_rate=1e-30, weight_decay=0.0, defense="none",
    )  # fmt: skip
    for name, array in network.variables["params"].items():
        layer, kind = name.split("/")
        before = start["params"][layer][kind]
        np.testing.assert_allclose(array, np.where(array == 0, 0, before), atol=1e-25)
        if name in network.keep_counts:
            assert np.count_nonzero(array) == network.keep_counts[name] < array.size
    assert set(network.keep_counts) == {"first/kernel", "second/kernel"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 16}, r"budget must be in \(0, 1\], got 16: did you mean 0\.16"),
        ({"budget": "1e-9"}, "is below what this network can be pruned to: the least possible is"),
        ({"budget": "10M"}, "is more than the whole network: it has 18,552 macs"),
        ({"epoch": 3}, "unknown setting 'epoch'.*epochs"),
        ({"model": Net(classes=7)}, "has 7 logits, and the data has 10 classes"),
        ({"model": Net}, "Net is a class of flax.linen: give an instance"),
        ({"model": "resnet9"}, "unknown model 'resnet9'.*resnet8"),
        ({"model": "resnet8", "variables": {}}, "not for the name 'resnet8'"),
        ({"model": 3}, "a network of type .*int is not known"),
        ({"variables": {"params": {}}}, "the variables lack params/classifier/bias"),
        ({"batch_size": 9999}, "larger than the 256 training images"),
        ({"dataset": "digit"}, "unknown dataset 'digit': did you mean 'digits'"),
    ],
)  # fmt: skip
def test_errors_are_one_line(tmp_path, change, message):
    with pytest.raises(irp.UserError, match=message) as error:
        train(change.pop("model", Net()), workdir=tmp_path / "run", **change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_arrays_of_ones_own_are_a_data_set(no_attacks, tmp_path):
    images, labels = digits().train.images, digits().train.labels % 2
    names = ("even", "odd")
    dataset = irp.from_arrays(images, labels, images[:20], labels[:20], class_names=names)
    network = train(Net(classes=2), dataset=dataset, epochs=1, defense="none")
    assert network.class_names == names
    assert network.record["trained"]["dataset"] == "arrays"
    with pytest.raises(irp.UserError, match="arrays"):
        irp.from_arrays(images, labels[:5], images[:20], labels[:20])


def test_a_graph_is_described():
    graph = irp.describe(Net(), (8, 8, 1))
    assert dict(graph.groups) == {"first": 8, "second": 12}
    assert irp.describe("resnet8", (8, 8, 1), classes=3).classes == 3


# ---- saving and loading ------------------------------------------------------------------------


def test_a_saved_network_loads_without_its_class(finished, saved):
    network, loaded = finished[1], irp.load(saved)
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json", "function.stablehlo", "model.safetensors",
    ]  # fmt: skip
    assert digest(loaded) == digest(network)
    assert (loaded.cost, loaded.keep_counts, loaded.history) == (
        network.cost, network.keep_counts, network.history,
    )  # fmt: skip
    for count in (1, 7):  # any number of images
        np.testing.assert_allclose(loaded(pixels(count)), network(pixels(count)), atol=1e-5)

    def loss(network, images):
        return jnp.square(network.apply(network.variables, images)).sum()

    images = jnp.asarray(pixels(7) / np.float32(255))
    ours, theirs = (jax.grad(functools.partial(loss, net))(images) for net in (network, loaded))
    assert float(jnp.abs(ours).max()) > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    report = loaded.evaluate(digits(), "pgd", steps=3)
    assert report.natural == network.results["accuracy"]["natural"]


def test_with_its_class_it_is_the_same_to_the_bit(finished, saved):
    with_code = irp.load(saved, model=Net())
    np.testing.assert_array_equal(with_code(pixels()), finished[1](pixels()))
    of_run = irp.load(finished[0])
    assert digest(of_run) == digest(with_code)
    of_checkpoint = irp.load(finished[0] / "checkpoints" / "3", model=Net())
    assert digest(of_checkpoint) == digest(with_code)


def test_what_was_loaded_can_be_saved_again(saved, tmp_path):
    irp.load(saved, model=Net()).save(tmp_path / "again")
    again = irp.load(tmp_path / "again")
    assert digest(again) == digest(irp.load(saved))
    again.save(tmp_path / "again", function=False)  # replaces the saved network
    with pytest.raises(irp.UserError, match="from outside this package: give its model, Net"):
        irp.load(tmp_path / "again")
    assert digest(irp.load(tmp_path / "again", model=Net())) == digest(again)


def test_images_of_another_shape_are_refused(saved):
    network = irp.load(saved)
    for images in (np.zeros((2, 9, 8, 1)), np.zeros((8, 8, 1)), np.zeros((2, 8, 8, 3))):
        with pytest.raises(irp.UserError, match=r"images must be \(N, 8, 8, 1\), got shape"):
            network(images.astype(np.float32))
    with pytest.raises(irp.UserError, match="255"):
        network(255 * np.ones((2, 8, 8, 1), np.float32))


@pytest.mark.parametrize("name", ["model.safetensors", "function.stablehlo", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty"])
def test_a_damaged_file_is_told_in_one_line(copied, name, damage):
    path = copied / name
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0x80
    path.write_bytes(content[: {"cut": len(content) // 2, "empty": 0}.get(damage)])
    if damage == "gone":
        path.unlink()
    with pytest.raises(irp.UserError) as error:
        irp.load(copied)
    assert "\n" not in str(error.value) and str(copied) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 5}, "is of format 5, and this version reads 4"),
        ({"format": None}, "is of format None"),
        (None, "is not the record of a network"),
        ({"network_sha256": None}, "is not the record of a network"),
        ({"network_sha256": "0"}, "is damaged or of another network"),
        ({"function_sha256": "0"}, "is damaged or missing"),
        ({"library_name": "timm"}, "is not the record of a network of irp_jax"),
        ({"model": "Net"}, "is not the record of a network"),
    ],
)
def test_a_record_of_another_version_or_of_nothing_is_told_in_one_line(copied, change, message):
    record = json.loads((copied / "config.json").read_text())
    files.write_json(copied / "config.json", [1] if change is None else record | change)
    with pytest.raises(irp.UserError, match=message) as error:
        irp.load(copied)
    assert "\n" not in str(error.value)


class Other(nn.Module):
    """A network with the same groups and other arrays."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(8, (3, 3), name="first")(images))
        x = nn.relu(nn.Conv(12, (3, 3), strides=2, name="second")(x))
        return nn.Dense(10, name="classifier")(x.mean((1, 2)))


@pytest.mark.parametrize("model", [Net(width=9), Other(), "resnet8"])
def test_another_model_than_it_was_made_with_is_refused(finished, saved, model):
    for place in (saved, finished[0] / "network"):
        with pytest.raises(irp.UserError, match="the network was not made with this"):
            irp.load(place, model=model)


def test_a_model_with_another_number_of_logits_is_refused(saved):
    with pytest.raises(irp.UserError) as error:
        irp.load(saved, model=Net(classes=3))
    assert "\n" not in str(error.value)


def test_a_missing_network_is_an_error(tmp_path):
    with pytest.raises(irp.UserError, match="no checkpoint in"):
        irp.load(tmp_path / "nothing")


def test_a_folder_of_something_else_is_not_written_to(finished, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(irp.UserError, match="holds something else"):
        finished[1].save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_one_of_ours_is_saved_without_a_function(tmp_path):
    network = train("resnet8", epochs=1, width=0.25, defense="none", budget=0.9)
    network.save(tmp_path / "ours")
    assert not (tmp_path / "ours" / "function.stablehlo").exists()
    loaded = irp.load(tmp_path / "ours")
    np.testing.assert_array_equal(loaded(pixels()), network(pixels()))
    assert loaded.name == "resnet8" and loaded.record["model"]["width"] == 0.25


def test_a_network_that_mixes_the_images_of_a_batch_comes_back_with_its_model(no_attacks, tmp_path):
    """Its function may fail to export, but its model always serves to load it."""

    class Mixing(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = nn.relu(nn.Conv(8, (3, 3), name="first")(images - images.mean(0)))
            x = nn.relu(nn.Conv(12, (3, 3), name="second")(x))
            return nn.Dense(10, name="classifier")(x.mean((1, 2)))

    network = train(Mixing(), epochs=1, defense="none", budget=0.9, batch_size=60)
    assert network(pixels()).shape == (5, 10)
    network.save(tmp_path / "mixing")
    again = irp.load(tmp_path / "mixing", model=Mixing())
    np.testing.assert_array_equal(again(pixels(60)), network(pixels(60)))


@pytest.mark.parametrize("where", ["inside the folder", "elsewhere"])
def test_no_file_that_a_record_names_is_ever_run(copied, tmp_path_factory, where):
    folder = copied if where == "inside the folder" else tmp_path_factory.mktemp("elsewhere")
    ran = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nNet = None\n")
    record = json.loads((copied / "config.json").read_text())
    record["model"] = {"name": f"{folder / 'evil.py'}:Net", "width": 1.0}
    (copied / "config.json").write_text(json.dumps(record))
    with pytest.raises(irp.UserError, match="not the record of a network"):
        irp.load(copied)
    assert not ran.exists()


def test_no_file_that_a_checkpoint_names_is_ever_run(finished, tmp_path):
    saved = checkpoint.restore(finished[0] / "checkpoints", None, print)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nNet = None\n")
    record = {**saved.record, "network": {**saved.record["network"]}}
    record["network"]["model"] = {"name": f"{tmp_path / 'evil.py'}:Net", "width": 1.0}
    checkpoint.save(tmp_path / "checkpoints", 3, saved.network, None, record)
    with pytest.raises(irp.UserError, match="of another version of irp_jax"):
        irp.load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"network_sha256": []},
        {"model": {"name": "resnet8"}},
        {"model": {"name": 5, "width": 1.0}},
        {"model": {}},
        {"class_names": 5},
        {"image_shape": [8, 8]},
        {"image_shape": [2**20, 2**20, 3]},
        {"keep_counts": None},
        {"keep_counts": {"first": 0}},
        {"cost": None},
        {"cost": {"macs": 1}},
        {"trained": {}},
        {"multiple": "4"},
        {"history": 5},
        {"quantization": {}},
        *({"trained": change} for change in (
            {"epsilon": math.nan}, {"epsilon": -5}, {"dataset": 5}, {"data_dir": 5},
        )),
    ],
)  # fmt: skip
def test_an_invalid_record_is_told_in_one_line(copied, change):
    record = json.loads((copied / "config.json").read_text())
    if change.get("trained"):
        change = {"trained": record["trained"] | change["trained"]}
    (copied / "config.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(irp.UserError, match="not the record of a network"):
        irp.load(copied)


def test_a_stored_function_that_calls_other_code_is_refused(copied):
    """XLA would look up the target of a custom call, which may be a Python callback."""
    record, variables, _ = layout.read(copied)

    def function(variables, images):
        logits = jnp.zeros((4, 10)) + variables["params"]["classifier/bias"]
        return jax.ffi.ffi_call("mine", jax.ShapeDtypeStruct((4, 10), jnp.float32))(logits)

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
    images = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
    unsafe = [jax.export.DisabledSafetyCheck.custom_call("mine")]
    exported = jax.export.export(jax.jit(function), disabled_checks=unsafe)(shapes, images)
    content = bytes(exported.serialize())
    layout.write(copied, layout.packed(record, variables, content))
    with pytest.raises(irp.UserError, match="custom_call"):
        irp.load(copied)
    with pytest.raises(irp.UserError, match="custom_call"):
        artifact.from_bytes(content, "stablehlo")


def test_the_cost_is_that_of_the_arrays(saved, copied):
    record = json.loads((copied / "config.json").read_text())
    wrong = record | {"cost": record["cost"] | {"params": 1}}
    (copied / "config.json").write_text(json.dumps(wrong))
    assert irp.load(copied, model=Net()).cost == irp.load(saved).cost
    counts = record["keep_counts"] | {"first": 1}
    (copied / "config.json").write_text(json.dumps(record | {"keep_counts": counts}))
    with pytest.raises(irp.UserError, match="keep counts"):
        irp.load(copied, model=Net())


@pytest.mark.parametrize("what", ["another name", "a type of no number", "no safetensors"])
def test_invalid_arrays_are_told_in_one_line(copied, what):
    arrays = safetensors.numpy.load_file(copied / "model.safetensors")
    if what == "another name":
        arrays["foo/bar"] = np.zeros(2, np.float32)
    if what == "a type of no number":
        arrays["params/first/bias"] = np.zeros(8, np.complex64)
    safetensors.numpy.save_file(arrays, copied / "model.safetensors")
    if what == "no safetensors":
        np.savez(copied / "model.safetensors", **arrays)
        (copied / "model.safetensors.npz").rename(copied / "model.safetensors")
    with pytest.raises(irp.UserError, match="not what a saved network holds") as error:
        irp.load(copied)
    assert "\n" not in str(error.value)


def test_other_files_in_the_folder_of_a_network_survive_its_replacement(saved, tmp_path):
    network = irp.load(saved)
    network.save(tmp_path / "network")
    (tmp_path / "network" / "README.md").write_text("a card")
    network.save(tmp_path / "network")
    assert (tmp_path / "network" / "README.md").read_text() == "a card"
    assert [path.name for path in tmp_path.iterdir()] == ["network"]
    (tmp_path / "network" / "notes.txt").touch()
    other = jax.tree.map(lambda array: array + 1, network.variables)
    dataclasses.replace(network, variables=other).save(tmp_path / "network")
    left = {path.name for path in (tmp_path / "network").iterdir()}
    assert "README.md" not in left and "notes.txt" in left  # the card was of the first network


def test_a_folder_behind_a_link_is_replaced(saved, tmp_path, monkeypatch):
    network = irp.load(saved)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    network.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and irp.load(tmp_path / "real").cost == network.cost
    monkeypatch.chdir(tmp_path / "real")
    network.save(".")
    assert irp.load(tmp_path / "real").cost == network.cost


def test_an_interrupted_replacement_loses_nothing(saved, tmp_path):
    network = irp.load(saved)
    network.save(tmp_path / "network")
    (tmp_path / "network" / "README.md").write_text("a card")
    (tmp_path / "network").rename(tmp_path / ".network.old")  # as after a kill
    assert irp.load(tmp_path / "network").cost == network.cost
    network.save(tmp_path / "network")
    assert (tmp_path / "network" / "README.md").read_text() == "a card"
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_a_network_is_pruned_that_was_trained_before(no_attacks):
    whole = train(Net(), budget=1.0, epochs=1, defense="none")
    small = train(Net(), variables=whole, epochs=1, learning_rate=1e-6, defense="none")
    assert small.cost["macs_ratio"] <= 0.4
    kept = np.asarray(small.variables["params"]["classifier/kernel"])
    rows = np.asarray(whole.variables["params"]["classifier/kernel"])
    nearest = np.abs(kept[:, None] - rows[None]).max(-1).min(1)
    assert (nearest < 1e-3).all(), "its channels are some of those it began with"
    with pytest.raises(irp.UserError, match="unpruned"):
        train(Net(), variables=small)


def test_a_model_with_other_operations_is_told(saved, capsys):
    class Twin(Net):  # the same arrays, another function
        @nn.compact
        def __call__(self, images, train):
            x = nn.Conv(self.width, (3, 3), name="first")(images - 0.5)
            x = nn.gelu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
            x = nn.gelu(nn.Conv(12, (3, 3), strides=2, name="second")(x))
            return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))

    irp.load(saved, model=Net())
    assert not capsys.readouterr().out
    irp.load(saved, model=Twin())
    assert "may not be the model" in capsys.readouterr().out


def dense_weights(dtype):
    random = np.random.default_rng(0)
    return {
        "a": {"kernel": jnp.asarray(random.normal(0, 0.2, (64, 16)), dtype)},
        "b": {"kernel": jnp.asarray(random.normal(0, 0.2, (16, 10)), dtype)},
    }


def half_precision(weights, images):
    x = images.reshape(len(images), -1).astype(weights["a"]["kernel"].dtype)
    return jax.nn.relu(x @ weights["a"]["kernel"]) @ weights["b"]["kernel"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_networks_of_few_bits_are_trained_averaged_saved_and_loaded(no_attacks, tmp_path, dtype):
    pair = half_precision, dense_weights(dtype)
    network = train(pair, workdir=tmp_path, epochs=1, ema=0.9, learning_rate=0.01)
    assert network.variables["params"]["a/kernel"].dtype == jnp.dtype(dtype)
    logits = np.asarray(network(pixels()), np.float32)
    assert np.isfinite(logits).all()
    again = irp.load(tmp_path / "network")
    np.testing.assert_array_equal(np.asarray(again(pixels()), np.float32), logits)


def test_another_network_of_the_same_layers_is_another_run(no_attacks, tmp_path):
    class Dropped(nn.Module):
        rate: float = 0.1
        scale: float = 1.0

        @nn.compact
        def __call__(self, images, train):
            init = nn.initializers.normal(self.scale)
            x = nn.relu(nn.Dense(16, kernel_init=init)(images.reshape(len(images), -1)))
            return nn.Dense(10)(nn.Dropout(self.rate, deterministic=not train)(x))

    train(Dropped(), workdir=tmp_path, epochs=1, defense="none")
    for other in (Dropped(rate=0.9), Dropped(scale=5.0)):
        with pytest.raises(irp.UserError, match="a different run"):
            train(other, workdir=tmp_path, epochs=1, defense="none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": (np.zeros((4, 8, 8, 1)), np.zeros(4))}, "from_arrays"),
        ({"config": {"epochs": 3}}, "config of type dict"),
        ({"workdir": 3}, "workdir of type int"),
        ({"callback": 3}, "callback of type int"),
        ({"model": None}, "model=None"),
    ],
)
def test_arguments_of_other_types_are_refused(change, message):
    with pytest.raises(irp.UserError, match=message):
        train(**{"model": Net(), **change})


def test_numpy_scalars_and_fractions_are_settings(no_attacks, saved):
    given = {"seed": np.int64(1), "epsilon": "1/255", "epochs": np.int32(1)}
    assert train(Net(), **given, defense="none").epsilon == 1 / 255
    for images in (np.zeros((2, 8, 8, 1), int), np.zeros((0, 8, 8, 1))):
        with pytest.raises(irp.UserError, match="images must be"):
            irp.load(saved)(images)


def test_the_folder_of_a_config_is_used(no_attacks, tmp_path):
    given = irp.Config(**{k: v for k, v in SETTINGS.items() if k != "progress"} | {"epochs": 1})
    config = dataclasses.replace(given, budget="0.4", workdir=str(tmp_path / "run"))
    network = irp.train(Net(), digits(), config, progress=False)
    assert digest(irp.load(tmp_path / "run" / "network")) == digest(network)


def test_a_save_that_fails_leaves_the_network_that_was_there(saved, tmp_path, monkeypatch):
    network = irp.load(saved)
    network.save(tmp_path / "network")

    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_whole", full)
    with pytest.raises(irp.UserError, match="No space left"):
        network.save(tmp_path / "network")
    monkeypatch.undo()
    assert digest(irp.load(tmp_path / "network")) == digest(network)
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_a_network_measures_its_curve(saved):
    small = irp.load(saved)
    data = (digits().test.images[:24], digits().test.labels[:24])
    curve = small.evaluate_curve(data, [0.2, 0.05], steps=2)
    assert list(curve) == [0.05, 0.2]
    assert (curve[0.2].is_robust <= curve[0.05].is_robust).all()
    alone = small.evaluate(data, epsilon=0.05, steps=2)
    np.testing.assert_array_equal(curve[0.05].is_robust, alone.is_robust)
