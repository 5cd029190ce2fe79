"""A run that is stopped within an epoch goes on there, to the identical result."""

import dataclasses
import itertools
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
from silent import Silent

from irp_jax import checkpoint
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.training import experiment, image_source, saves
from irp_jax.training.overfitting import AccuracyRecord

TINY = dataclasses.replace(
    configs.suited("digits", Config(model="resnet8", budget="0.3")),
    epochs=3, prune_stop=0.4, train_images=256, batch_size=32, epsilon_warmup=0.6,
    checkpoint_every=0.0,
)  # fmt: skip
"""Runs of eight steps an epoch, in four segments."""


@pytest.fixture(autouse=True)
def short_segments(monkeypatch, quick_runs):
    monkeypatch.setattr(image_source, "SEGMENT", 2)


class Stopped(Silent):
    """Stops the run when it reports a segment, counted from the start of this process."""

    def __init__(self, at, how=KeyboardInterrupt):
        super().__init__()
        self.at, self.how, self.steps = at, how, 0

    def progress(self, steps, images_per_s, metrics):
        self.steps += 1
        if self.steps == self.at and self.how is signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.steps == self.at:
            raise self.how


def run(folder, reporter=None, **changes):
    config = dataclasses.replace(TINY, workdir=str(folder), **changes)
    return experiment.run(config, reporter or Silent(), "test")


def end(folder, results):
    """Returns what two runs must have in common."""
    saved = checkpoint.restore(folder / "checkpoints", None, print)
    rows = [(row["epoch"], row["loss"], row["train_accuracy"]) for row in results["history"]]
    facts = [results[key] for key in ("network_sha256", "passes_per_image", "rollbacks")]
    return saved.epoch, checkpoint.digest(saved.network), rows, facts


SETTINGS = {
    "channels": {},
    "weights, averaged": {"granularity": "weight", "ema": 0.9},
    "memory": {"defense": "fgsm-mep"},
    "8 bits": {"quantize": "int8", "quantize_start": 0.6},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_killed_run_goes_on_within_the_epoch_to_the_identical_result(tmp_path, settings):
    whole = end(tmp_path / "whole", run(tmp_path / "whole", **settings, checkpoint_every=1e9))
    went_on = []
    for at in (2, 5, 3, 2):  # one of them just after the cut
        stopped = Stopped(at)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", stopped, **settings)
        went_on += [note for note in stopped.notes if "going on within epoch" in note]
    last = Silent()
    assert end(tmp_path / "killed", run(tmp_path / "killed", last, **settings)) == whole
    # Without its memory of the images, an epoch cannot start anew: the first is not saved within.
    assert len(went_on) >= (1 if settings.get("defense") == "fgsm-mep" else 2)
    assert not (tmp_path / "killed" / "underway").exists()


def test_sigterm_stops_a_run_after_the_segment_and_nothing_is_lost(tmp_path):
    seldom = {"checkpoint_every": 1e9}
    whole = end(tmp_path / "whole", run(tmp_path / "whole", **seldom))
    for segments in (2, 3):
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path / "stopped", Stopped(segments, signal.SIGTERM), **seldom)
        assert stopped.value.code == 128 + signal.SIGTERM
    again = Stopped(99)
    assert end(tmp_path / "stopped", run(tmp_path / "stopped", again, **seldom)) == whole
    assert again.steps == 12 - 2 - 3, "no segment is trained or reported twice"
    assert any("within epoch 2, of which 50% is done" in note for note in again.notes)


UNSAVED = {"no guard": {"guard": False}, "memory": {"defense": "fgsm-mep"}}


@pytest.mark.parametrize("settings", UNSAVED.values(), ids=UNSAVED)
def test_sigterm_waits_for_the_end_of_an_epoch_whose_start_is_not_saved(tmp_path, settings):
    seldom = {"checkpoint_every": 1e9, **settings}
    whole = end(tmp_path / "whole", run(tmp_path / "whole", **seldom))
    first = Stopped(6, signal.SIGTERM)  # within the second epoch; nothing is saved yet
    with pytest.raises(SystemExit):
        run(tmp_path / "stopped", first, **seldom)
    assert (tmp_path / "stopped" / "checkpoints" / "2").is_dir() and len(first.rows) == 2
    assert end(tmp_path / "stopped", run(tmp_path / "stopped", **seldom)) == whole


@pytest.mark.parametrize("guard", [True, False])
def test_each_epoch_that_is_long_is_saved_within(tmp_path, monkeypatch, guard):
    clock = itertools.count(0, 20)  # seconds; each look at the clock takes long
    monkeypatch.setattr(saves, "SHARE", 0)
    monkeypatch.setattr(saves, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    written = []
    inner = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda folder, number, *rest: (
            written.append((folder.name, number)), inner(folder, number, *rest)
        ),
    )  # fmt: skip
    run(tmp_path, checkpoint_every=30.0, guard=guard)
    within = {(number - 1) // 4 for name, number in written if name == "underway"}
    assert within == ({0, 1, 2} if guard else {1, 2})
    assert {1, 2, 3} <= {number for name, number in written if name == "checkpoints"}


@pytest.mark.parametrize("damage", ["truncated", "of another epoch"])
def test_an_epoch_under_way_that_cannot_be_used_starts_anew(tmp_path, damage):
    whole = end(tmp_path / "whole", run(tmp_path / "whole"))
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(folder, Stopped(7))
    if damage == "truncated":
        for path in (folder / "underway").rglob("*"):
            if path.is_file() and path.stat().st_size > 1000:
                path.write_bytes(path.read_bytes()[:-100])
    else:  # as if the epoch had ended before masks were frozen, with arrays of other shapes
        shutil.rmtree(folder / "checkpoints" / "1")
    again = Silent()
    assert end(folder, run(folder, again)) == whole
    assert not any("within epoch" in note for note in again.notes)
    assert any("damaged" in note for note in again.notes) == (damage == "truncated")


def test_a_rollback_undoes_what_was_saved_of_the_epoch(tmp_path, monkeypatch):
    """The verdict is replaced by one that alarms at the sixth probe of every guarded defense."""
    count = lambda self, pgd, trained: self._replace(chance=self.chance + 1)  # noqa: E731
    monkeypatch.setattr(AccuracyRecord, "after", count)
    monkeypatch.setattr(AccuracyRecord, "after_check", lambda self, pgd, trained: self)
    monkeypatch.setattr(AccuracyRecord, "alarming", property(lambda self: self.chance > 6))
    settings = {"method": "width", "defense": "fgsm"}
    results = run(tmp_path / "whole", **settings, checkpoint_every=1e9)
    assert [event["epoch"] for event in results["rollbacks"]] == [2, 2]
    whole = end(tmp_path / "whole", results)
    for at in (6, 2, 3, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", Stopped(at), **settings)
    assert end(tmp_path / "killed", run(tmp_path / "killed", **settings)) == whole
