"""Notes of a run about compaction and held-out images, and checkpoints of other versions."""

import dataclasses
import types

import numpy as np
import pytest
from defense_nets import CONFIG, make_setup
from silent import Silent

from irp_jax import checkpoint
from irp_jax.errors import UserError
from irp_jax.pruning import cost
from irp_jax.training import checkpoints, loop, progress, transitions
from irp_jax.training.overfitting import AccuracyRecord


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    setup = make_setup(CONFIG)
    monkeypatch.setattr(AccuracyRecord, "_asdict", lambda self: list(self))
    checkpoints.save(setup, dataclasses.replace(progress.start(setup), epoch=1), tmp_path)
    with pytest.raises(UserError, match="another version: choose another --workdir"):
        checkpoints.resume(setup, tmp_path, print)


def test_a_checkpoint_of_the_version_before_is_refused_and_kept(tmp_path, monkeypatch):
    setup, written = make_setup(CONFIG), checkpoint.save

    def save(folder, epoch, network, training, record):
        record["kept"], record["retreats"] = record.pop("keep_counts"), record.pop("rollbacks")
        written(folder, epoch, network, training, record)

    monkeypatch.setattr(checkpoint, "save", save)
    checkpoints.save(setup, dataclasses.replace(progress.start(setup), epoch=1), tmp_path)
    told = []
    with pytest.raises(UserError, match="another version: choose another --workdir"):
        checkpoints.resume(setup, tmp_path, told.append)
    assert not told and (tmp_path / "checkpoints" / "1").exists()


def test_a_cut_that_leaves_more_than_the_budget_says_so():
    setup = make_setup(CONFIG)
    everything = {name: int(size) for name, size in setup.graph.groups.items()}
    over = 100 * (cost.total(setup.graph).macs / setup.plan.limit - 1)
    assert f", {over:.1f}% over the budget of {setup.plan.limit:,}" in transitions.frozen_note(
        setup, everything
    )
    assert "over" not in transitions.frozen_note(setup, {name: 1 for name in everything})


def test_epochs_measured_on_training_images_are_told(monkeypatch):
    setup, reporter = make_setup(CONFIG), Silent()
    setup.dataset.validation = setup.dataset.train.take(np.arange(4))
    assert len(loop.probe_set(setup, reporter)[0]) == 4 and not reporter.notes
    setup.dataset.validation = setup.dataset.train.take(np.arange(0))
    assert len(loop.probe_set(setup, reporter)[0]) == len(setup.dataset.train)
    told = "are held out: the accuracies of epochs are of training images"
    assert reporter.notes == [f"no images {told}"]
    monkeypatch.setattr(loop, "sample_images", lambda setup, split: split)
    setup = dataclasses.replace(setup, mesh=types.SimpleNamespace(size=8))
    setup.dataset.validation = setup.dataset.train.take(np.arange(4))
    assert loop.probe_set(setup, reporter) is setup.dataset.train
    assert reporter.notes[1:] == [f"too few images (4) {told}"]
