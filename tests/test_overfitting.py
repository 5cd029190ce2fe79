"""The guard against catastrophic overfitting: it detects it, reacts, and always ends."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_nets import CONFIG, IMAGES, KEY, NETWORK, make_setup, recipe
from silent import Silent

from irp_jax import attacks, checkpoint
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.training import experiment, guard, overfitting, progress, segments
from irp_jax.training.defenses import DEFENSES, Batch, Choice, PgdTraining
from irp_jax.training.divergence import LossRecord
from irp_jax.training.overfitting import AccuracyRecord
from irp_jax.training.step import probe_state

RESULTS = Path(__file__).parent.parent / "results"

THREAT = attacks.linf(0.1)
CALM = LossRecord.begin(np.arange(10), 10)
GREY = jnp.full((32, 4, 4, 1), 0.5)
ZEROS = jnp.zeros(32, jnp.int32)


def hollow(images):
    """A network that is right at the image and at the surface of the ball, but wrong half way.

    FGSM training may learn such a network. The loss rises up to half the radius, and a step of
    length epsilon skips the maximum.
    """
    away = jnp.abs(images - 0.5).mean((1, 2, 3)) / THREAT.epsilon + 1e-4 * images.mean((1, 2, 3))
    gap = 1.0 - 1.3 * jnp.sin(jnp.pi * jnp.clip(away, 0, 1))
    return jnp.stack([gap, jnp.zeros_like(gap)], axis=-1)


def steady(images):
    """A network with the same margin everywhere near the image."""
    return jnp.stack([images.mean((1, 2, 3)), jnp.zeros(len(images))], axis=-1)


def test_the_probe_finds_what_one_step_skips():
    one = attacks.fgsm(hollow, GREY, ZEROS, THREAT, key=jax.random.key(0))
    assert (hollow(one).argmax(-1) == ZEROS).mean() > 0.9
    assert float(overfitting.probe(hollow, GREY, ZEROS, THREAT, jax.random.key(0))) < 0.1
    assert float(overfitting.probe(steady, GREY, ZEROS, THREAT, jax.random.key(0))) == 1.0


def follow(history, chance=0.1):
    """Returns whether it alarms after each (PGD accuracy, accuracy under the training attack)."""
    accuracy_record, alarms = AccuracyRecord(chance), []
    for pgd, trained in history:
        accuracy_record = accuracy_record.after(pgd, trained)
        alarms.append(accuracy_record.alarming)
    return alarms


def recorded(path, pgd, trained):
    """Returns (PGD, training attack) accuracies of each epoch of a run in results/."""
    return [(row[pgd], row[trained]) for row in json.loads(path.read_text())["history"]]


def test_it_alarms_in_the_collapse_that_was_recorded():
    alarms = follow(recorded(RESULTS / "collapse_rs_fgsm.json", "pgd", "train_fgsm"))
    assert alarms.index(True) == 2  # 0.34 under RS-FGSM, 0.13 under PGD; 0.04 an epoch later


def test_it_does_not_alarm_in_any_healthy_run_that_was_recorded():
    """A row of the history holds means of two probes.

    In older runs the accuracy under the training attack is the mean over an epoch.
    """
    checked = 0
    for path in RESULTS.rglob("*.json"):
        run = json.loads(path.read_text())
        if "probe_pgd" not in (run.get("history") or [{}])[-1] or run["rollbacks"]:
            continue
        trained = "probe_trained" if "probe_trained" in run["history"][0] else "train_accuracy"
        before = -1.0
        for pgd, of in recorded(path, "probe_pgd", trained):
            assert not AccuracyRecord(0.1, pgd, of, rising=pgd > before).alarming, path
            before = pgd
        checked += 1
    assert checked > 20


def test_it_tells_recorded_segments_that_collapse_from_those_that_do_not():
    runs = json.loads((RESULTS / "collapse_n_fgsm.json").read_text())["runs"]
    segments = {name: run["segments"] for name, run in runs.items() if "segments" in run}
    alarms = {
        name: any(follow(zip(one["probe_pgd"], one["train_accuracy"], strict=True)))
        for name, one in segments.items()
    }
    assert alarms == {"cyclic, dense": True, "cyclic, pruned": True, "cosine, pruned": False}


def test_falling_accuracy_under_both_attacks_is_no_alarm():
    falling = [(0.5, 0.6), (0.5, 0.6), (0.2, 0.3), (0.1, 0.2), (0.1, 0.2)]  # as during pruning
    cheating = [(0.5, 0.6), (0.5, 0.6), (0.2, 0.7), (0.1, 0.8)]
    once = [(0.5, 0.6), (0.5, 0.6), (0.2, 0.7), (0.5, 0.6)]
    near_chance = [(0.1, 0.12), (0.11, 0.13), (0.0, 0.15), (0.0, 0.2)]
    assert [any(follow(h)) for h in (falling, cheating, once, near_chance)] == [
        False, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("segments", [4, 50])
def test_a_growing_radius_is_no_alarm_and_hides_no_collapse(segments):
    """Both accuracies fall as the radius grows. Then only PGD accuracy collapses."""
    accuracy_record = AccuracyRecord(0.1)
    for n in range(segments):
        done = n / segments
        accuracy_record = accuracy_record.after(0.5 - 0.25 * done, 0.6 - 0.3 * done)
        assert not accuracy_record.suspicious
    for _ in range(3):
        accuracy_record = accuracy_record.after(0.02, 0.42)
    assert accuracy_record.alarming


@pytest.mark.parametrize("duration", [1, 5, 20])
@pytest.mark.parametrize("level", [0.2, 0.3, 0.5])
def test_a_collapse_however_slow_is_noticed(level, duration):
    accuracy_record = AccuracyRecord(0.1)
    for _ in range(10):
        accuracy_record = accuracy_record.after(level, 1.2 * level)
    for n in range(duration + 4):
        left = max(0.0, 1 - (n + 1) / duration)
        accuracy_record = accuracy_record.after(level * left, (1.8 - 0.6 * left) * level)
    assert accuracy_record.alarming


def test_a_state_that_is_doubtful_for_long_counts_as_sound():
    """Otherwise a run whose PGD accuracy stays at 60 % of the other would never be saved."""
    doubtful = AccuracyRecord(0.1, 0.3, 0.5)
    assert doubtful.suspicious and not doubtful.alarming

    def run_at(epoch, accuracy_record=doubtful, loss_record=CALM):
        return types.SimpleNamespace(
            epoch=epoch, accuracy_record=accuracy_record, loss_record=loss_record, clip=0.0
        )

    at = [run_at(n) for n in range(6)]
    assert guard.is_sound(at[1], None)
    assert [guard.is_sound(now, at[1]) for now in at[2:]] == [False, False, True, True]
    well = AccuracyRecord(0.1, 0.5, 0.5)
    assert guard.is_sound(run_at(2, well), at[1])
    assert not guard.is_sound(run_at(2, well, CALM.after(4.0)), at[1])  # loss 1.7 above guessing


def test_overfitting_from_the_start_is_an_alarm():
    """PGD accuracy stays near zero, as in a run with radius 0.3 (results/guard)."""
    assert any(follow([(0.0, 0.1), (0.0, 0.3), (0.02, 0.4), (0.0, 0.5), (0.1, 0.6)]))


def test_a_slow_start_is_no_alarm():
    """Residual networks on digits, PGD training and two-class training start like this."""
    assert not any(follow([(0.0, 0.1), (0.17, 0.4), (0.3, 0.5), (0.4, 0.5)]))
    assert not any(follow([(0.0, 0.11), (0.03, 0.14), (0.02, 0.2), (0.05, 0.25)]))
    assert not any(follow([(0.3, 0.5), (0.2, 0.55), (0.2, 0.6), (0.1, 0.6)], chance=0.5))
    assert any(follow([(0.3, 0.8), (0.2, 0.8), (0.2, 0.9)], chance=0.5))


def test_a_second_check_confirms_a_collapse_or_clears_the_alarm():
    alarming = AccuracyRecord(0.1)
    for pgd, trained in [(0.4, 0.5), (0.4, 0.5), (0.1, 0.6), (0.1, 0.6)]:
        alarming = alarming.after(pgd, trained)
    assert alarming.alarming
    assert alarming.after_check(0.05, 0.6).alarming
    unlucky = alarming.after_check(0.5, 0.6)
    assert not unlucky.alarming and not unlucky.suspicious
    # One more bad probe is no alarm, but a collapse is.
    assert not unlucky.after(0.16, 0.6).alarming
    assert unlucky.after(0.02, 0.6).after(0.02, 0.6).alarming


def test_it_is_suspicious_before_it_alarms():
    accuracy_record = AccuracyRecord()
    for pgd, trained in [(0.5, 0.6), (0.5, 0.6), (0.2, 0.7)]:
        accuracy_record = accuracy_record.after(pgd, trained)
    assert accuracy_record.suspicious and not accuracy_record.alarming


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_the_list_of_stronger_defenses_ends(name):
    rungs, rung = [], Choice(name, 10)
    while (rung := rung.stronger) is not None:
        assert rung not in rungs
        rungs.append(rung)
    assert all(to in DEFENSES for to, _ in rungs)
    if name.startswith(("fgsm", "n-fgsm", "gradalign")):
        assert rungs[-2:] == [("pgd", 3), ("pgd", 10)]


def test_few_steps_reach_as_far_as_many():
    reach = {}
    for steps in (1, 2, 3, 5, 10, 20):
        batch = Batch(GREY, ZEROS, THREAT, jax.random.key(0))
        found = PgdTraining(steps=steps).perturb(steady, batch)
        reach[steps] = float(jnp.abs(found.adversarial - GREY).mean() / THREAT.epsilon)
    assert min(reach.values()) > 0.85


@pytest.mark.parametrize(("batch", "devices"), [(128, 1), (128, 2), (96, 96), (7, 7), (9, 3)])
def test_the_images_probed_split_evenly(batch, devices):
    count = overfitting.probe_size(batch, devices)
    assert 0 < count <= batch
    assert count % devices == 0


TINY = configs.suited("digits", Config(model="resnet8", budget="0.3", defense="fgsm"))
TINY = dataclasses.replace(
    TINY, epochs=3, prune_stop=0.4, train_images=256, batch_size=64, checkpoint_every=0.0
)


class Killed(Silent):
    """A reporter that stops the run at its first roll back."""

    def back_to(self, done):
        raise KeyboardInterrupt


def test_a_run_that_alarms_gets_stronger_defenses_and_resumes_to_the_same(
    tmp_path, monkeypatch, quick_runs
):
    """The verdict is replaced by one that alarms at the second probe of every guarded defense."""
    count = lambda self, pgd, trained: self._replace(chance=self.chance + 1)  # noqa: E731
    monkeypatch.setattr(AccuracyRecord, "after", count)
    monkeypatch.setattr(AccuracyRecord, "after_check", lambda self, pgd, trained: self)
    monkeypatch.setattr(AccuracyRecord, "alarming", property(lambda self: self.chance > 2))
    whole, killed = (
        dataclasses.replace(TINY, method="width", workdir=str(tmp_path / name))
        for name in ("run", "killed")
    )
    reporter = Silent()
    results = experiment.run(whole, reporter, "test")
    assert [tuple(event["to"]) for event in results["rollbacks"]] == [
        ("pgd", 3), ("pgd", 10),
    ]  # fmt: skip
    assert {(event["epoch"], event["back_to"]) for event in results["rollbacks"]} == {(2, 1)}
    told = [note for note in reporter.notes if "catastrophic overfitting in epoch 2" in note]
    assert ["going on with pgd" in note for note in told] == [True, True]
    kept = [(row["epoch"], row["defense"]) for row in results["history"]]
    assert kept == [(1, "fgsm"), (2, "pgd"), (3, "pgd")]
    assert results["defense"] == "pgd"
    # Epoch 1, two failed attempts at epoch 2, then two epochs of eleven passes each.
    assert results["passes_per_image"] == pytest.approx(2 + 2 + 4 + 22)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(killed, Killed(), "test")
    again = experiment.run(killed, Silent(), "test")
    assert again["rollbacks"] == results["rollbacks"]
    digests = [
        checkpoint.digest(checkpoint.restore(tmp_path / name / "checkpoints", None, print).network)
        for name in ("run", "killed")
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("alarmed_at", [2, 3, 5, 7, None])
def test_an_epoch_is_cut_short_by_a_confirmed_alarm_and_by_nothing_else(alarmed_at, confirmed):
    """A confirmed alarm stays, even if a later segment looks healthy."""
    sent, looks = [], []

    def check_alarm(state, accuracy_record):
        looks.append(state)
        return accuracy_record if confirmed else accuracy_record.after_check(0.5, 0.6)

    def send(state, batches):
        good = alarmed_at is None or len(sent) + 1 < alarmed_at
        sent.append(batches)
        metrics = {
            "loss": np.ones(4), "cost_ratio": np.ones(4),
            "train_accuracy": np.full(4, 0.5),
            "probe_trained": np.array([0.6 if good else 0.8]),
            "probe_pgd": np.array([0.5 if good else 0.22]),
        }  # fmt: skip
        return state + 1, metrics

    batches = np.zeros((8, 4, 2), np.int32)
    accuracy_record = AccuracyRecord().after(0.5, 0.6).after(0.5, 0.6)
    trained = segments.run_segments(
        send, segments.Begun(0, accuracy_record), batches, None, Silent(), check_alarm
    )
    stopped = alarmed_at is not None and confirmed
    assert trained.record.alarming == stopped
    # Two bad probes, and the segment that was running when the second one was checked.
    assert len(sent) == (min(alarmed_at + 2, 8) if stopped else 8)
    assert looks[:1] == ([min(alarmed_at + 2, 8)] if alarmed_at else [])
    assert len(looks) == 1 if stopped else len(looks) <= 4
    assert len(trained.metrics["loss"]) == 4 * len(sent)


@pytest.mark.parametrize(("logits_fn", "collapsed"), [(hollow, True), (steady, False)])
def test_the_check_of_an_alarm_attacks_by_both(logits_fn, collapsed):
    """FGSM does not find the collapse, and PGD does."""

    def network(weights, batch_stats, images, train, key):
        return logits_fn(images), batch_stats

    state = progress.start(make_setup(CONFIG)).state
    how = dataclasses.replace(recipe("fgsm"), threat=THREAT)
    seen = jnp.full(GREY.shape, 127, jnp.uint8), ZEROS, jnp.arange(len(ZEROS))
    alarming, reporter = AccuracyRecord(pgd=0.1, trained=0.6, rising=False), Silent()
    accuracy_record = guard.check_alarm(how, network, KEY, seen, reporter, state, alarming)
    assert accuracy_record.trained > 0.9 and accuracy_record.alarming == collapsed
    assert len(reporter.notes) == (0 if collapsed else 1)


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_the_probe_attacks_the_network_as_it_trains(name):
    """The probe uses the statistics of its batch, not the running statistics."""
    state = progress.start(make_setup(dataclasses.replace(CONFIG, defense=name))).state
    weights, indices = state.params["weights"], jnp.arange(len(IMAGES))
    logits, _ = NETWORK(weights, state.batch_stats, IMAGES, train=True)
    lagging = jax.tree.map(lambda leaf: leaf + 7.0, state.batch_stats)
    state = dataclasses.replace(state, batch_stats=lagging)
    how = dataclasses.replace(recipe(name), threat=attacks.linf(1e-6), epsilon_steps=0)
    pixels = np.round(IMAGES * 255).astype(np.uint8)
    found = probe_state(how, NETWORK, KEY, state, pixels, logits.argmax(-1), indices)
    assert {name: float(value) for name, value in found.items()} == {
        "probe_trained": 1.0, "probe_pgd": 1.0,
    }  # fmt: skip


def test_the_guard_can_be_left_out(tmp_path, quick_runs):
    config = dataclasses.replace(TINY, epochs=1, prune_stop=0.9, guard=False, workdir=str(tmp_path))
    reporter = Silent()
    results = experiment.run(config, reporter, "test")
    assert results["rollbacks"] == []
    assert "probe_pgd" not in reporter.rows[0]
    assert np.isfinite(reporter.rows[0]["loss"])
