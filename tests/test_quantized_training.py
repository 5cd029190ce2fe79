"""Runs that train in 8-bit integers: what they save, export, resume and roll back to; refusals."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from baseline_nets import Net, Stopping
from defense_nets import CONFIG, GRAPH
from silent import Silent
from test_cli import refusal

import irp_jax as irp
from irp_jax import checkpoint, models, traced
from irp_jax import config as configs
from irp_jax.cli import export
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.export import artifact
from irp_jax.quantization import Quantization
from irp_jax.training import divergence, experiment
from irp_jax.training.divergence import LossRecord
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan

TINY = configs.suited("digits", Config(model="resnet8", budget="0.3", checkpoint_every=0.0))
TINY = dataclasses.replace(
    TINY, epochs=4, prune_stop=0.5, train_images=256, batch_size=64,
    quantize="int8", quantize_start=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """Uses a network that compiles fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet8", lambda scale, classes, act: Net(8, 8, classes))
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """Returns the config, the notes and the results of a whole run."""
    config = dataclasses.replace(TINY, workdir=str(tmp_path_factory.mktemp("run")))
    reporter = Silent()
    return config, reporter.notes, experiment.run(config, reporter, "bin/train")


def test_it_trains_in_8_bits_from_the_given_epoch_on(finished):
    _, notes, results = finished
    assert [row["quantized"] for row in results["history"]] == [False, False, True, True]
    assert results["history"][-1]["loss"] < results["history"][0]["loss"]
    assert results["quantization"] == "int8"
    assert sum("int8 from now on" in note for note in notes) == 1


def test_training_differs_from_float32_only_from_there_on(finished, no_attacks, tmp_path):
    config, _, results = finished
    plain = dataclasses.replace(config, quantize="", workdir=str(tmp_path / "run"))
    found = experiment.run(plain, Silent(), "bin/train")
    assert "quantization" not in found
    same = [
        one["loss"] == other["loss"]
        for one, other in zip(results["history"], found["history"], strict=True)
    ]
    assert same == [True, True, False, False]


def test_the_saved_network_is_quantized_and_its_file_computes_the_same(finished, tmp_path, capsys):
    config, _, results = finished
    run, test = Path(config.workdir), irp.load_data("digits").test
    net = irp.load(run / "network")
    assert isinstance(net.quantization, Quantization)
    assert irp.load(run).quantization == net.quantization  # from the checkpoint
    logits = np.asarray(net(test.images))
    assert (logits != np.asarray(net.with_quantization(None)(test.images))).any()
    for flags in ([], ["--quantize=int8"]):
        out = tmp_path / f"{len(flags)}.onnx"
        export.export([f"--checkpoint={run}", f"--out={out}", *flags])
        file = artifact.load(out)
        there = file(test.images / np.float32(255))
        assert np.abs(there - logits).max() < 0.05 * np.abs(logits).max()
        assert (there.argmax(-1) == logits.argmax(-1)).mean() > 0.99
        natural = float((there.argmax(-1) == test.labels).mean())
        assert results["accuracy"]["natural"] == pytest.approx(natural, abs=0.01)
        assert Quantization.of(json.loads(file.facts["quantization"])) == net.quantization
        assert float(file.facts["natural_accuracy"]) == results["accuracy"]["natural"]


def test_calibration_of_a_network_that_has_its_ranges_is_refused(
    finished, tmp_path, capsys, monkeypatch
):
    flags = [f"--checkpoint={finished[0].workdir}", f"--out={tmp_path / 'm.onnx'}"]
    flags += ["--quantize=int8", "--calibration-images=9"]
    assert "--calibration-images" in refusal(capsys, monkeypatch, export.export, *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_interrupted_on_both_sides_resumes_to_the_identical_result(finished, tmp_path):
    config, _, results = finished
    again = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    for epoch in (3, 4):  # before the ranges are saved, and after
        with pytest.raises(KeyboardInterrupt):
            experiment.run(again, Stopping(epoch), "bin/train")
    resumed = experiment.run(again, Silent(), "bin/train")
    for key in ("network_sha256", "accuracy", "quantization"):
        assert resumed[key] == results[key]
    nets = [irp.load(Path(each.workdir) / "network") for each in (config, again)]
    assert nets[0].quantization == nets[1].quantization
    losses = [[row["loss"] for row in each["history"]] for each in (results, resumed)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_the_guard_rolls_back_to_a_quantized_state(quick_runs, tmp_path, monkeypatch):
    """The verdict is replaced: it says that the third epoch in 8 bits has diverged."""
    monkeypatch.setattr(divergence, "CLIP", 0.01)
    monkeypatch.setattr(
        LossRecord, "after", lambda self, loss: self._replace(lowest=self.lowest + 1)
    )
    monkeypatch.setattr(LossRecord, "alarming", property(lambda self: self.lowest > 5))
    config = dataclasses.replace(
        TINY, method="width", epochs=5, quantize_start=0.3, ema=0.9, workdir=str(tmp_path)
    )
    results = experiment.run(config, Silent(), "bin/train")
    (event,) = results["rollbacks"]
    assert (event["epoch"], event["back_to"], event["clip"]) == (5, 4, 0.01)
    assert [row["quantized"] for row in results["history"]] == [False, False, True, True, True]
    saved = checkpoint.restore(tmp_path / "checkpoints", None, print)
    average = irp.load(tmp_path).variables  # the average is the network
    assert checkpoint.digest(average) == results["network_sha256"]
    assert saved.record["network"]["quantization"] == irp.load(tmp_path).quantization.record()


@pytest.mark.parametrize(
    "change",
    [{"quantize": "int4"}, {"granularity": "weight"}, {"method": "hinge"}, {"quantize_start": 1.0}],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(change):
    with pytest.raises(UserError, match="quantize"):
        configs.check(dataclasses.replace(TINY, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"quantize_start": 0.25},
        {"epochs": 1},
        {"method": "magnitude", "pretraining": 0.9, "epochs": 10},
    ],
    ids=str,
)
def test_it_cannot_begin_before_the_freeze(change):
    config = dataclasses.replace(CONFIG, quantize="int8", **change)
    with pytest.raises(UserError, match="--quantize"):
        make_plan(config, METHODS[config.method], GRAPH, 24)


def test_it_begins_as_late_as_asked_and_not_after_the_last_epoch():
    for method, epochs, start, begun in (
        ("lagrangian", 10, 0.8, 8), ("lagrangian", 10, 0.99, 9), ("lagrangian", 2, 0.8, 1),
        ("width", 4, 0.0, 0), ("admm", 3, 0.8, 2),
    ):  # fmt: skip
        config = dataclasses.replace(
            CONFIG, method=method, epochs=epochs, quantize="int8", quantize_start=start
        )
        assert make_plan(config, METHODS[method], GRAPH, 24).quantize_epoch == begun


def test_a_network_with_other_layers_in_training_is_refused():
    class Wider(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = nn.Conv(4, (3, 3), name="first")(images)
            extra = nn.Conv(4, (3, 3), name="second")(x)
            x = x + extra if train else x
            return nn.Dense(3)(jax.nn.relu(x).mean((1, 2)))

    with pytest.raises(UserError, match="training"):
        traced.check_quantized(traced.trace(Wider(), (8, 8, 1)), 4)
    traced.check_quantized(traced.trace(Net(4, 4, skip=True), (8, 8, 1)), 4)


def test_its_settings_are_part_of_the_identity_and_of_the_name():
    plain = dataclasses.replace(TINY, quantize="", quantize_start=0.8)
    eight = dataclasses.replace(plain, quantize="int8")
    assert "quantize" not in configs.identity(plain)
    assert configs.identity(eight)["quantize"] == "int8"
    assert "-int8-" in configs.run_name(eight) and "int8" not in configs.run_name(plain)
    (told,) = configs.unused(dataclasses.replace(plain, quantize_start=0.9))
    assert told.startswith("--quantize-start") and "--quantize=int8" in told
