"""The guard against divergence: it detects a diverging loss, rolls back and clips gradients."""

import dataclasses
import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from silent import Silent

from irp_jax import checkpoint
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.training import divergence, experiment, guard, segments
from irp_jax.training.divergence import LossRecord, stronger_clipping
from irp_jax.training.overfitting import AccuracyRecord

RESULTS = Path(__file__).parent.parent / "results"

TINY = configs.suited("digits", Config(model="resnet8", budget="0.3", defense="fgsm-mep"))
TINY = dataclasses.replace(
    TINY,
    method="width",
    epochs=3,
    train_images=256,
    batch_size=128,
    schedule="cosine",
    checkpoint_every=0.0,
)


def follow(losses, frozen=None, classes=10, labels=None):
    """Returns the LossRecord after each epoch. `frozen` lists whether masks are frozen in each."""
    labels = np.arange(classes) if labels is None else labels
    loss_record, followed, before = LossRecord.begin(labels, classes), [], False
    for loss, now in zip(losses, frozen or [False] * len(losses), strict=True):
        loss_record = (loss_record.after_compaction if now != before else loss_record).after(loss)
        followed.append(loss_record)
        before = now
    return followed


def recorded(path):
    rows = json.loads(path.read_text()).get("history") or [{}]
    if "frozen" not in rows[0]:
        return []
    return follow([row["loss"] for row in rows], [row["frozen"] for row in rows])


DIVERGED = sorted((RESULTS / "diverged").glob("*.json"))


def test_it_rolls_back_to_before_the_loss_rose():
    (path,) = [path for path in DIVERGED if path.name.startswith("resnet56-digits-0.7-seed0")]
    followed = recorded(path)
    assert [n + 1 for n, loss_record in enumerate(followed) if loss_record.alarming] == [21, 22]
    assert followed[19].suspicious and not followed[18].suspicious


@pytest.mark.parametrize("path", DIVERGED, ids=lambda path: path.stem)
def test_it_alarms_where_a_recorded_run_diverged(path):
    assert any(loss_record.alarming for loss_record in recorded(path))


def test_it_does_not_alarm_in_any_other_run_that_was_recorded():
    """These runs include digits pruned to 0.04 within nine epochs, where the loss rises by 2.2.

    After a roll back the loss of a run may rise strongly once more before it falls.
    """
    found = {path: recorded(path) for path in RESULTS.rglob("*.json") if path not in DIVERGED}
    alarming = [path for path, of in found.items() if any(d.alarming for d in of)]
    assert sum(len(followed) > 0 for followed in found.values()) > 80
    clipped = [[e.get("clip") for e in json.loads(p.read_text())["rollbacks"]] for p in alarming]
    assert all(clip == [divergence.CLIP] for clip in clipped), alarming


@pytest.mark.parametrize(
    ("losses", "alarming"),
    [
        ([0.5, 2.7], False),
        ([0.5, 2.9], True),  # rises by 2.3
        ([4.5, 4.5, 4.5], False),  # has not learned anything yet
        ([4.7], True),
        ([2.3, 1.0, 0.2, 1.3, 2.6], True),  # rises over several epochs
        ([0.5, math.nan], True),
        ([math.nan], True),
        ([math.inf], True),
        ([0.5, math.nan, 0.4], False),
        ([2.0, 0.6, 0.2, 2.35, 2.303], False),
        ([2.0, 0.6, 0.2, 2.35, 2.303, 2.303], True),  # is back at guessing for three epochs
        ([2.1, 1.9, 1.6, 2.59, 2.303, 2.303], True),  # losses as on CIFAR-10
        ([2.1, 1.9, 1.6, 2.59, 2.0, 2.303, 2.303], False),
        ([2.3, 2.25, 2.3, 2.3, 2.3], False),  # had hardly learned anything
    ],
)
def test_what_alarms_it(losses, alarming):
    assert follow(losses)[-1].alarming == alarming


def test_a_network_that_guesses_again_is_suspicious_at_once():
    assert [d.suspicious for d in follow([2.1, 1.6, 2.3, 1.9])] == [False, False, True, False]


def test_it_counts_by_the_loss_of_guessing():
    assert follow([0.5, 2.9], classes=10)[-1].alarming
    assert not follow([0.5, 2.9], classes=100)[-1].alarming


def test_a_network_that_always_predicts_the_most_frequent_class_guesses():
    labels = np.repeat([0, 1], [90, 10])
    prior = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)  # 0.325, where ln 2 is 0.693
    rest = [0.5, 0.2, 0.1, prior, prior, prior]
    assert follow(rest, classes=2, labels=labels)[-1].alarming
    assert not follow(rest, classes=2)[-1].alarming
    assert not follow([0.5, 0.2, 0.1, 0.12, 0.15, 0.2], classes=2, labels=labels)[-1].alarming
    assert not follow([1.2], classes=2, labels=labels)[-1].alarming  # at the start, below ln 4
    smoothed = LossRecord.begin(labels, 2, smoothing=0.2)
    assert smoothed.prior == pytest.approx(-0.82 * math.log(0.82) - 0.18 * math.log(0.18))
    assert LossRecord.begin(np.zeros(5, int), 2).prior == 0.0


@pytest.mark.parametrize(
    ("losses", "clip", "sound"),
    [
        ([2.0, 1.5, 0.8, 2.1, 2.303, 2.303, 2.303], 0.0, [1, 2, 3]),
        ([0.2, 1.5, 2.0, 2.3, 2.4, 2.45], 0.0, [1]),  # keeps rising
        ([0.2, 1.5, 1.6, 1.7, 1.6, 1.6], 0.0, [1, 5]),  # has become stable
        ([2.0, 1.5, 0.8, 2.1, 2.303, 2.303, 2.303], 1.0, [1, 2, 3, 6]),  # no way from before
    ],
)
def test_a_network_that_is_about_to_guess_is_not_sound(losses, clip, sound):
    healthy, found = None, []
    for epoch, loss_record in enumerate(follow(losses), start=1):
        now = SimpleNamespace(
            epoch=epoch, loss_record=loss_record, accuracy_record=AccuracyRecord(0.1), clip=clip
        )
        if guard.is_sound(now, healthy):
            healthy = now
            found.append(epoch)
    assert found == sound


def grow(losses, grows, freeze=99, rounded=None):
    """Returns the LossRecord after each epoch of ten steps. The radius grows for `grows` steps."""
    plan = SimpleNamespace(
        epsilon_steps=grows, steps_per_epoch=10, freeze_epoch=freeze, stages=(0,), reinit=False,
        quantize_epoch=rounded,
    )  # fmt: skip
    followed = [LossRecord.begin(np.arange(10), 10)]
    for epoch, loss in enumerate(losses):
        now = SimpleNamespace(epoch=epoch, loss_record=followed[-1])
        followed.append(guard.loss_record_before(plan, now).after(loss))
    return followed[1:]


RISING = [0.4, 0.9, 1.4, 1.9, 2.25, 2.1]


def test_loss_that_rises_with_the_radius_is_no_alarm():
    assert not any(loss_record.suspicious for loss_record in grow(RISING, 45))
    assert any(loss_record.suspicious for loss_record in grow(RISING, 0))
    assert grow([*RISING, 4.5], 45)[-1].alarming
    after = grow(RISING, 25)  # full radius from the middle of the third epoch on
    assert [loss_record.lowest for loss_record in after] == [0.4, 0.4, 0.9, 1.4, 1.4, 1.4]
    assert [loss_record.lowest for loss_record in grow(RISING, 25, freeze=3)][3:] == [1.9, 1.9, 1.9]


def test_divergence_while_the_radius_grows_is_an_alarm():
    dead = grow([1.9, 1.6, 1.4, 2.303, 2.303, 2.303], 60)
    assert [loss_record.stuck for loss_record in dead] == [0, 0, 0, 1, 2, 3] and dead[-1].alarming


@pytest.mark.parametrize("cut", [3, 4])
def test_divergence_right_before_compaction_is_an_alarm(cut):
    dead = grow([1.9, 1.6, 2.303, 2.303, 2.303], 0, freeze=cut)
    assert [loss_record.stuck for loss_record in dead] == [0, 0, 1, 2, 3] and dead[-1].alarming


def test_loss_may_rise_to_guessing_at_compaction():
    """A run of results/trials_weights did so and still reached 96.5 %."""
    assert not any(now.suspicious for now in grow([1.9, 1.6, 2.38, 2.38, 2.34, 2.19], 0, freeze=2))


def test_loss_may_rise_when_rounding_begins():
    losses = [1.2, 0.4, 2.2, 1.8]
    assert any(now.suspicious for now in grow(losses, 0, freeze=1))
    assert not any(now.suspicious for now in grow(losses, 0, freeze=1, rounded=2))


def test_what_an_epoch_ends_with_counts(monkeypatch):
    """A network that diverges in the last steps of an epoch is no state to roll back to."""
    network = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    monkeypatch.setattr(segments, "is_finite", segments.is_finite.__wrapped__)
    state = SimpleNamespace(params=network, batch_stats={})
    losses = np.repeat([1.5, 1.4, 9.0], [20, 20, 10])

    def loss(losses, state, whole=1.0):
        metrics = {"cross_entropy": losses, "loss": whole * losses}
        return segments.epoch_loss(segments.Trained(state, metrics, record=None), steps=10)

    assert loss(losses, state) == 9.0
    assert loss(losses[:40], state) == pytest.approx(1.45)  # the mean is above the last loss
    assert loss(losses, state, whole=7.0) == 9.0  # includes all terms of the defense
    assert math.isnan(loss(losses, state, whole=math.inf))
    assert math.isnan(loss(np.array([1.5, math.inf, math.nan]), state))
    broken = {**network, "bias": jnp.array([0.0, math.nan, 0.0])}
    assert math.isnan(loss(losses, SimpleNamespace(params=broken, batch_stats={})))


def test_gradients_are_cut_shorter_or_not_at_all():
    assert [stronger_clipping(clip) for clip in (0.0, 5.0, 1.0, 0.5)] == [1.0, 1.0, None, None]


class Killed(Silent):
    """A reporter that stops the run at the end of an epoch, or when it rolls back."""

    def __init__(self, epoch=None):
        super().__init__()
        self.at = epoch

    def back_to(self, done):
        if self.at is None:
            raise KeyboardInterrupt

    def epoch(self, row):
        super().epoch(row)
        if row["epoch"] == self.at:
            raise KeyboardInterrupt


@pytest.fixture
def run(tmp_path, monkeypatch, quick_runs):
    """Returns a function that trains a small network, with a clip that changes the result."""
    monkeypatch.setattr(divergence, "CLIP", 0.01)

    def start(name, reporter=None, **changes):
        config = dataclasses.replace(TINY, workdir=str(tmp_path / name), **changes)
        return experiment.run(config, reporter or Silent(), "test")

    return start


@pytest.fixture
def digest(tmp_path):
    def of(name):
        return checkpoint.digest(
            checkpoint.restore(tmp_path / name / "checkpoints", None, print).network
        )

    return of


@pytest.mark.slow
def test_a_run_that_diverges_at_once_ends_as_if_clipped_from_the_start(run, digest, monkeypatch):
    clipped = run("clipped", clip=0.01)
    assert clipped["rollbacks"] == []
    # From here on any loss counts as diverged.
    monkeypatch.setattr(LossRecord, "begin", classmethod(lambda cls, *_: cls(1.0, 1.0, -3.0, -3.0)))
    reporter = Silent()
    results = run("guarded", reporter)
    (event,) = results["rollbacks"]
    assert (event["epoch"], event["back_to"], event["clip"]) == (1, 0, 0.01)
    assert event["loss"] != clipped["history"][0]["loss"]  # clipping changes the result
    assert sum("going on with gradients no longer than 0.01" in n for n in reporter.notes) == 1
    assert sum("a smaller --learning-rate may train better" in n for n in reporter.notes) > 0
    assert results["history"][0]["loss"] == clipped["history"][0]["loss"]
    assert [row["epoch"] for row in results["history"]] == [1, 2, 3]
    assert results["passes_per_image"] == clipped["passes_per_image"] + 3
    assert digest("clipped") == digest("guarded")


@pytest.mark.slow
def test_a_run_killed_on_either_side_of_an_alarm_ends_the_same(run, digest, monkeypatch):
    """The verdict is replaced: it says that the third epoch has diverged."""
    monkeypatch.setattr(
        LossRecord, "after", lambda self, loss: self._replace(lowest=self.lowest + 1)
    )
    monkeypatch.setattr(LossRecord, "alarming", property(lambda self: self.lowest > 5))
    results = run("whole", epochs=5)
    (event,) = results["rollbacks"]
    assert (event["epoch"], event["back_to"]) == (3, 2)
    told = "going on with fgsm-mep, gradients no longer than 0.01, as the guard decided"
    for killed, left_off in [(Killed(), None), (Killed(4), 2), (Silent(), 3)]:
        with pytest.raises(KeyboardInterrupt) if left_off != 3 else nullcontext():
            again = run("killed", killed, epochs=5)
        assert (f"resuming after epoch {left_off}" in killed.notes) == (left_off is not None)
        assert (told in killed.notes) == (left_off == 3)
    assert again["rollbacks"] == results["rollbacks"]
    assert again["passes_per_image"] == results["passes_per_image"]
    assert digest("killed") == digest("whole")


@pytest.mark.slow
def test_a_state_can_be_rolled_back_to_twice(run, monkeypatch):
    """Also if the state is doubtful. Training donates its arrays, so a copy is needed."""
    monkeypatch.setattr(LossRecord, "suspicious", property(lambda self: True))
    monkeypatch.setattr(AccuracyRecord, "after_check", lambda self, pgd, trained: self)
    monkeypatch.setattr(
        AccuracyRecord, "alarming", property(lambda self: self.last_pgd is not None)
    )
    results = run("twice", epochs=1, defense="fgsm")
    assert [event["to"] for event in results["rollbacks"]] == [["pgd", 3], ["pgd", 10]]
    assert {event["back_to"] for event in results["rollbacks"]} == {0}


def test_a_run_that_diverges_although_clipped_ends_in_one_line(run, tmp_path):
    with pytest.raises(UserError, match="diverged in epoch 1: give a smaller --learning-rate"):
        run("hopeless", learning_rate=1e30, defense="none")
    assert not (tmp_path / "hopeless" / "results.json").exists()
