"""Runs on images that are read from files."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
from folder_data import CLASSES, make_folder
from silent import Silent

import irp_jax as irp
from irp_jax import parallel
from irp_jax.cli.train import train
from irp_jax.config import Config
from irp_jax.data import open_folder
from irp_jax.errors import UserError
from irp_jax.training import experiment, image_source
from irp_jax.training.image_source import Streamed
from irp_jax.training.preview import preview

TINY = Config(
    model="resnet8", budget="0.5", image_size=16, epochs=4, batch_size=16, prune_stop=0.5,
    checkpoint_every=0.0,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images")


def tiny(folder, workdir, **settings):
    return dataclasses.replace(TINY, dataset=str(folder), workdir=str(workdir), **settings)


def test_each_batch_has_the_images_of_its_indices_in_every_view(folder):
    split, _, _, _ = open_folder(str(folder), 16, 0.0)
    source = Streamed(split, parallel.mesh(2), seed=1)
    batches = np.random.default_rng(0).permutation(36).astype(np.int32).reshape(3, 2, 6)
    first, again, other = (list(source.segments(batches, view)) for view in (0, 0, 1))
    for segment, images, same, new in zip(batches, first, again, other, strict=True):
        assert images.shape == (2, 6, 16, 16, 3) and images.dtype == np.uint8
        assert {s.data.shape for s in images.addressable_shards} == {(2, 3, 16, 16, 3)}
        np.testing.assert_array_equal(images, same)
        assert (np.asarray(images) != np.asarray(new)).any((2, 3, 4)).all()
        brightest = np.asarray(images).mean((2, 3)).argmax(-1)
        np.testing.assert_array_equal(brightest, split.labels[segment])


class Stopped(Silent):
    """Sends SIGTERM after an epoch."""

    def epoch(self, row):
        super().epoch(row)
        if row["epoch"] in (1, 3):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_run_that_was_stopped_repeats_its_batches(quick_runs, folder, tmp_path):
    whole = experiment.run(tiny(folder, tmp_path / "whole"), Silent(), "bin/train")
    assert whole["history"][-1]["loss"] < whole["history"][0]["loss"]
    config = tiny(folder, tmp_path / "parts")
    for _ in range(2):
        with pytest.raises(SystemExit):
            experiment.run(config, Stopped(), "bin/train")
    changed = folder / "train" / "ant" / "000.jpg"
    content = changed.read_bytes()
    changed.write_bytes(content + b"\0")
    with pytest.raises(UserError, match=r"different run \(dataset_sha256"):
        experiment.run(config, Silent(), "bin/train")
    changed.write_bytes(content)
    parts = experiment.run(config, Silent(), "bin/train")
    assert parts["network_sha256"] == whole["network_sha256"]
    assert [row["loss"] for row in parts["history"]] == [row["loss"] for row in whole["history"]]


class StoppedWithin(Silent):
    """Sends SIGTERM when the second segment of this process is reported."""

    segments = 0

    def progress(self, steps, images_per_s, metrics):
        self.segments += 1
        if self.segments == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_stopped_within_an_epoch_reads_the_rest_of_it(
    quick_runs, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(image_source, "SEGMENT", 1)
    whole = experiment.run(tiny(folder, tmp_path / "whole", batch_size=8), Silent(), "bin/train")
    config, again = tiny(folder, tmp_path / "parts", batch_size=8), Silent()
    with pytest.raises(SystemExit):
        experiment.run(config, StoppedWithin(), "bin/train")
    parts = experiment.run(config, again, "bin/train")
    assert any("going on within epoch 1" in note for note in again.notes)
    assert parts["network_sha256"] == whole["network_sha256"]
    assert [row["loss"] for row in parts["history"]] == [row["loss"] for row in whole["history"]]


def test_a_data_set_of_a_folder_and_its_path_train_the_same_network(quick_runs, folder):
    settings = dict(budget=0.5, epochs=1, batch_size=16, progress=False)
    named = irp.train("resnet8", str(folder), image_size=16, **settings)
    dataset = irp.load_data(str(folder), image_size=16)
    loaded = irp.train("resnet8", dataset, **settings)
    assert named.class_names == CLASSES and named.image_shape == (16, 16, 3)
    assert named.results["network_sha256"] == loaded.results["network_sha256"]
    assert "dataset_sha256" in named.results["identity"]
    assert "dataset_sha256" in loaded.results["identity"]


def test_arrays_are_not_taken_for_a_folder_of_the_same_name(quick_runs, tmp_path, monkeypatch):
    images, labels = np.random.default_rng(0).random((64, 8, 8, 1)), np.arange(64) % 2
    arrays = irp.from_arrays(images, labels, images, labels)
    settings = dict(budget=0.5, epochs=1, batch_size=16, progress=False)
    expected = irp.train("resnet8", arrays, **settings).results["network_sha256"]
    (tmp_path / "arrays" / "train").mkdir(parents=True)
    (tmp_path / "arrays" / "train" / "list.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert irp.train("resnet8", arrays, **settings).results["network_sha256"] == expected


def test_a_damaged_image_ends_a_run_with_one_line(quick_runs, folder, tmp_path):
    damaged = folder / "train" / "bee" / "002.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(UserError, match=r"bee/002\.jpg is damaged") as error:
        experiment.run(tiny(folder, tmp_path / "run", validation=0.0), Silent(), "bin/train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"defense": "fgsm-mep"}, {"teacher": "parent"}], ids=["memory", "teacher"]
)
def test_what_needs_all_images_in_memory_is_refused(folder, tmp_path, settings):
    config = tiny(folder, tmp_path / "run", **settings)
    for begin in (preview, lambda config: experiment.run(config, Silent(), "bin/train")):
        with pytest.raises(UserError, match="in memory"):
            begin(config)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_reads_no_image(quick_runs, folder, tmp_path, capsys):
    for image in folder.glob("*/*/*"):
        image.write_bytes(b"")
    train([
        "--dry-run", f"--dataset={folder}", "--model=resnet8", "--image-size=32", "--batch-size=8",
        f"--workdir={tmp_path / 'run'}",
    ])  # fmt: skip
    assert json.loads(capsys.readouterr().out.partition("}")[0] + "}")["image_size"] == 32


def test_the_segments_of_large_images_are_shorter(folder, tmp_path):
    size = {"image_size": 1024, "batch_size": 33, "epochs": 1}
    found = preview(tiny(folder, tmp_path / "run", **size))
    assert found.memory["training images"] <= 2 * 2**30
