"""The guard against a loss that blows up: it tells that from other rises, and clips from there."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from baseline_nets import Net as Small
from silent import Silent

from irp_jax import checkpoint, models
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.training import divergence, loop
from irp_jax.training.divergence import Descent, steadier

RESULTS = Path(__file__).parent.parent / "results"

TINY = configs.suited("digits", Config(model="resnet8", budget="0.3", defense="fgsm-mep"))
TINY = dataclasses.replace(TINY, epochs=3, ramp_stop=0.6, batch_size=512, checkpoint_every=0.0)


def follow(losses, frozen=None, classes=10):
    """Descent after each epoch; `frozen` says of which ones masks are."""
    descent, followed = Descent.begin(classes), []
    before = False
    for loss, now in zip(losses, frozen or [False] * len(losses), strict=True):
        if now and not before:
            descent = Descent.begin(classes)
        descent, before = descent.after(loss), now
        followed.append(descent)
    return followed


def recorded(run):
    rows = run["history"]
    return follow([row["loss"] for row in rows], [row["frozen"] for row in rows])


def test_it_alarms_where_a_recorded_run_diverged():
    followed = recorded(json.loads((RESULTS / "diverged_resnet56.json").read_text()))
    assert [n + 1 for n, descent in enumerate(followed) if descent.alarming] == [21]
    assert followed[19].suspicious and not followed[18].suspicious  # so it goes back to epoch 19


def test_it_does_not_alarm_in_any_other_run_that_was_recorded():
    """Pruning to 0.04 of digits within nine epochs among them, where loss rises by 2.2."""
    checked = 0
    for path in RESULTS.rglob("*.json"):
        run = json.loads(path.read_text())
        if "frozen" not in (run.get("history") or [{}])[0] or path.name.startswith("diverged"):
            continue
        if path.parent.name in ("operations", "steady"):  # from before the guard saw it
            continue
        assert not any(descent.alarming for descent in recorded(run)), path
        checked += 1
    assert checked > 80


@pytest.mark.parametrize(
    ("losses", "alarming"),
    [
        ([0.5, 2.7], False),
        ([0.5, 2.9], True),  # 2.3 more
        ([4.5, 4.5, 4.5], False),  # has not learnt anything yet
        ([4.7], True),
        ([2.3, 1.0, 0.2, 1.3, 2.6], True),  # in several epochs
        ([0.5, math.nan], True),
        ([math.nan], True),
        ([math.inf], True),
        ([0.5, math.nan, 0.4], False),
    ],
)
def test_what_alarms_it(losses, alarming):
    assert follow(losses)[-1].alarming == alarming


def test_it_counts_by_the_loss_of_guessing():
    assert follow([0.5, 2.9], classes=10)[-1].alarming
    assert not follow([0.5, 2.9], classes=100)[-1].alarming


def test_gradients_are_cut_shorter_or_not_at_all():
    assert [steadier(clip) for clip in (0.0, 5.0, 1.0, 0.5)] == [1.0, 1.0, None, None]


class Killed(Silent):
    def back_to(self, done):
        raise KeyboardInterrupt


@pytest.fixture
def run(tmp_path, monkeypatch, quick_compile):
    """Runs on a small network, with gradients cut to a length that matters to it."""
    monkeypatch.setitem(models.MODELS, "resnet8", lambda classes, scale: Small(8, 8, classes))
    monkeypatch.setattr(divergence, "CLIP", 0.01)

    def start(name, reporter=None, **changes):
        config = dataclasses.replace(TINY, workdir=str(tmp_path / name), **changes)
        return loop.run(config, reporter or Silent(), "test")

    return start


def test_a_run_goes_on_clipped_and_resumes_to_the_same(run, tmp_path, monkeypatch):
    """What diverges in its first epoch ends as if gradients had been cut from the start."""
    plain, clipped = run("plain"), run("clipped", clip=0.01)
    assert plain["retreats"] == clipped["retreats"] == []
    # Loss as it is counts as having diverged.
    monkeypatch.setattr(Descent, "begin", classmethod(lambda cls, classes: cls(1.0, -3.0, -3.0)))
    reporter = Silent()
    results = run("guarded", reporter)
    (event,) = results["retreats"]
    assert (event["epoch"], event["back_to"], event["clip"]) == (1, 0, 0.01)
    assert event["loss"] == pytest.approx(plain["history"][0]["loss"])
    assert sum("going on with gradients no longer than 0.01" in n for n in reporter.notes) == 1
    assert [row["epoch"] for row in results["history"]] == [1, 2, 3]
    assert results["passes_per_image"] == clipped["passes_per_image"] + 3
    with pytest.raises(KeyboardInterrupt):
        run("killed", Killed())
    assert run("killed")["retreats"] == results["retreats"]
    names = ("plain", "clipped", "guarded", "killed")
    digests = [
        checkpoint.digest(checkpoint.restore(tmp_path / name / "checkpoints", None, print).network)
        for name in names
    ]
    assert digests[1] == digests[2] == digests[3] != digests[0]


def test_what_cannot_be_helped_ends_in_one_line(run, tmp_path):
    with pytest.raises(UserError, match="diverged in epoch 2: give a smaller --learning-rate"):
        run("hopeless", learning_rate=1e30)
    assert not (tmp_path / "hopeless" / "results.json").exists()
