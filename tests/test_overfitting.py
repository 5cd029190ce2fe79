"""The guard: it tells a network that fools one step from a healthy one, and always ends."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baseline_nets import Net as Small
from defense_nets import CONFIG, IMAGES, Net, make_setup
from silent import Silent

from irp_jax import attacks, checkpoint, models
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.training import epochs, loop, overfitting, progress
from irp_jax.training.defenses import DEFENSES, Batch, Choice, Pgd
from irp_jax.training.overfitting import Health

RESULTS = Path(__file__).parent.parent / "results"

THREAT = attacks.linf(0.1)
GREY = jnp.full((32, 4, 4, 1), 0.5)
ZEROS = jnp.zeros(32, jnp.int32)


def hollow(images):
    """Right at the image and at the ball's surface, wrong half way: what FGSM training may learn.

    The loss rises up to half the radius, and every step of length epsilon jumps over that.
    """
    away = jnp.abs(images - 0.5).mean((1, 2, 3)) / THREAT.epsilon + 1e-4 * images.mean((1, 2, 3))
    gap = 1.0 - 1.3 * jnp.sin(jnp.pi * jnp.clip(away, 0, 1))
    return jnp.stack([gap, jnp.zeros_like(gap)], axis=-1)


def steady(images):
    """The same margin everywhere near the image."""
    return jnp.stack([images.mean((1, 2, 3)), jnp.zeros(len(images))], axis=-1)


def test_the_probe_sees_what_one_step_jumps_over():
    one = attacks.fgsm(hollow, GREY, ZEROS, THREAT, key=jax.random.key(0))
    assert (hollow(one).argmax(-1) == ZEROS).mean() > 0.9
    assert float(overfitting.probe(hollow, GREY, ZEROS, THREAT, jax.random.key(0))) < 0.1
    assert float(overfitting.probe(steady, GREY, ZEROS, THREAT, jax.random.key(0))) == 1.0


def follow(history):
    """Whether it alarmed, after each (accuracy under PGD, accuracy under the attack trained on)."""
    health, alarms = Health(), []
    for pgd, trained in history:
        health = health.after(pgd, trained)
        alarms.append(health.alarming)
    return alarms


def recorded(path):
    """(PGD, attack trained on) epoch by epoch of a run in results/.

    PGD of the guard's own probe where there is one: its radius is that of the attack.
    """
    rows = json.loads(path.read_text())["history"]
    return [
        (row.get("probe_pgd", row["pgd"]), row.get("train_accuracy", row.get("train_fgsm")))
        for row in rows
    ]


def test_it_alarms_in_the_collapse_that_was_recorded():
    alarms = follow(recorded(RESULTS / "collapse_rs_fgsm.json"))
    assert not any(alarms[:3])
    assert any(alarms)


def test_it_does_not_alarm_in_any_healthy_run_that_was_recorded():
    paths = [p for p in RESULTS.rglob("*.json") if "bench" not in p.name and "-pgd-" not in p.name]
    paths = [p for p in paths if p.name != "collapse_rs_fgsm.json"]
    runs = [json.loads(p.read_text()) for p in paths]
    healthy = [p for p, run in zip(paths, runs, strict=True) if "history" in run]
    assert len(healthy) > 20
    assert [p.name for p in healthy if any(follow(recorded(p)))] == []


def test_losing_ground_under_both_attacks_is_no_alarm():
    falling = [(0.5, 0.6), (0.5, 0.6), (0.2, 0.3), (0.1, 0.2), (0.1, 0.2)]  # as pruning does it
    cheating = [(0.5, 0.6), (0.5, 0.6), (0.2, 0.7), (0.1, 0.8)]
    once = [(0.5, 0.6), (0.5, 0.6), (0.1, 0.7), (0.5, 0.6)]
    near_chance = [(0.1, 0.12), (0.11, 0.13), (0.0, 0.15), (0.0, 0.2)]
    assert [any(follow(h)) for h in (falling, cheating, once, near_chance)] == [
        False, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("segments", [4, 50])
def test_what_was_reached_at_a_smaller_radius_hides_no_collapse(segments):
    """As the radius grows both accuracies fall; then the attack trained on is fooled."""
    health = Health()
    for n in range(segments):
        done = n / segments
        health = health.after(0.5 - 0.25 * done, 0.6 - 0.3 * done, growth=1 / segments)
        assert not health.suspicious
    for _ in range(3):
        health = health.after(0.02, 0.42)
    assert health.alarming


@pytest.mark.parametrize("duration", [1, 5, 20])
@pytest.mark.parametrize("level", [0.2, 0.3, 0.5])
def test_a_collapse_while_the_radius_grows_is_noticed(level, duration):
    health = Health()
    for _ in range(10):
        health = health.after(level, 1.2 * level, growth=1 / 50)
    for n in range(duration + 4):
        left = max(0.0, 1 - (n + 1) / duration)
        health = health.after(level * left, (1.8 - 0.6 * left) * level, growth=1 / 50)
    assert health.alarming


def test_a_second_look_confirms_a_collapse_and_forgets_bad_luck():
    alarming = Health()
    for pgd, trained in [(0.4, 0.5), (0.4, 0.5), (0.1, 0.6), (0.1, 0.6)]:
        alarming = alarming.after(pgd, trained)
    assert alarming.alarming
    assert alarming.after_second_look(0.4, 0.05) == alarming
    lucky = alarming.after_second_look(0.25, 0.2)
    assert not lucky.alarming and not lucky.suspicious
    # The best that was chance is forgotten: the same bad luck again is no alarm, a collapse is.
    assert not lucky.after(0.16, 0.6).after(0.16, 0.6).alarming
    assert lucky.after(0.02, 0.6).after(0.02, 0.6).alarming


def test_a_second_look_is_not_fooled_by_a_state_that_had_learnt_nothing_yet():
    """The last state above suspicion may be from the start of the run, or of a steep epoch."""
    alarming = Health()
    for pgd, trained in [(0.35, 0.4), (0.35, 0.4), (0.0, 0.6), (0.0, 0.6)]:
        alarming = alarming.after(pgd, trained)
    for before in (0.0, 0.08, 0.16):
        assert alarming.after_second_look(before, 0.05).alarming


def test_it_is_suspicious_before_it_alarms():
    health = Health()
    for pgd, trained in [(0.5, 0.6), (0.5, 0.6), (0.2, 0.7)]:
        health = health.after(pgd, trained)
    assert health.suspicious and not health.alarming


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_there_is_an_end_to_getting_stronger(name):
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
        found = Pgd(steps=steps).perturb(steady, batch)
        reach[steps] = float(jnp.abs(found.adversarial - GREY).mean() / THREAT.epsilon)
    assert min(reach.values()) > 0.85


@pytest.mark.parametrize(("batch", "devices"), [(128, 1), (128, 2), (96, 96), (7, 7), (9, 3)])
def test_the_images_probed_split_evenly(batch, devices):
    count = overfitting.images_of(batch, devices)
    assert 0 < count <= batch
    assert count % devices == 0


TINY = configs.suited("digits", Config(model="resnet8", budget="0.3", defense="fgsm"))
TINY = dataclasses.replace(TINY, epochs=3, ramp_stop=0.4, batch_size=512, checkpoint_every=0.0)


class Killed(Silent):
    """Stops the run at its first retreat."""

    def back_to(self, done):
        raise KeyboardInterrupt


def test_a_run_that_alarms_climbs_the_ladder_and_resumes_to_the_same(
    tmp_path, monkeypatch, quick_compile
):
    """With thresholds that whatever has two probes exceeds, every guarded defence is given up."""
    for name, value in (("ALARM", 2.0), ("SUSPICION", 0.0), ("GAP", -1.0), ("KEPT", -1.0)):
        monkeypatch.setattr(overfitting, name, value)
    monkeypatch.setitem(models.MODELS, "resnet8", lambda classes, scale: Small(8, 8, classes))
    reporter, killed = Silent(), dataclasses.replace(TINY, workdir=str(tmp_path / "killed"))
    results = loop.run(dataclasses.replace(TINY, workdir=str(tmp_path / "run")), reporter, "test")
    assert [tuple(event["to"]) for event in results["retreats"]] == [
        ("n-fgsm", 10), ("pgd", 3), ("pgd", 10),
    ]  # fmt: skip
    assert {(event["epoch"], event["back_to"]) for event in results["retreats"]} == {(2, 1)}
    assert sum("going on with" in note for note in reporter.notes) == 3
    kept = [(row["epoch"], row["defense"]) for row in results["history"]]
    assert kept == [(1, "fgsm"), (2, "pgd"), (3, "pgd")]
    assert results["defense"] == "pgd"
    # Epoch 1, epoch 2 three times in vain, then two epochs of eleven passes each.
    assert results["passes_per_image"] == pytest.approx(2 + 2 + 2 + 4 + 22)
    with pytest.raises(KeyboardInterrupt):
        loop.run(killed, Killed(), "test")
    again = loop.run(killed, Silent(), "test")
    assert again["retreats"] == results["retreats"]
    digests = [
        checkpoint.digest(checkpoint.restore(tmp_path / name / "checkpoints", None, print).network)
        for name in ("run", "killed")
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("alarmed_at", [2, 3, 5, 7, None])
def test_an_epoch_is_cut_short_by_a_confirmed_alarm_and_by_nothing_else(alarmed_at, confirmed):
    """Segments that stop being healthy: the alarm stands, whatever the last one shows."""
    sent, looks = [], []

    def look(state, health):
        looks.append(state)
        return health if confirmed else health.after_second_look(0.5, 0.5)

    def send(state, batches):
        good = alarmed_at is None or len(sent) + 1 < alarmed_at
        sent.append(batches)
        metrics = {
            "loss": np.ones(4), "cost_ratio": np.ones(4),
            "train_accuracy": np.full(4, 0.6 if good else 0.8),
            "probe_pgd": np.array([0.5 if good else 0.0]),
        }  # fmt: skip
        return state + 1, metrics

    batches = np.zeros((8, 4, 2), np.int32)
    health = Health().after(0.5, 0.6).after(0.5, 0.6)
    trained = epochs._epoch(send, 0, health, batches, None, [0.0] * 8, Silent(), look)
    stopped = alarmed_at is not None and confirmed
    assert trained.health.alarming == stopped
    # Two bad probes, and the segment that was under way when the second was looked at.
    assert len(sent) == (min(alarmed_at + 2, 8) if stopped else 8)
    assert looks[:1] == ([min(alarmed_at + 2, 8)] if alarmed_at else [])
    assert len(looks) == 1 if stopped else len(looks) <= 4
    assert len(trained.metrics["loss"]) == 4 * len(sent)


@pytest.mark.parametrize("collapsed", [True, False])
def test_a_second_look_attacks_the_state_above_suspicion_and_the_present_one(collapsed):
    setup = make_setup(CONFIG)
    healthy = progress.start(setup, Net())
    labels = setup.apply(
        {"params": healthy.state.params["weights"], "batch_stats": healthy.state.batch_stats},
        IMAGES,
    ).argmax(-1)
    alarming = Health(pgd=0.1, trained=0.6, best_pgd=0.5, best_trained=0.5)
    flip = -1.0 if collapsed else 1.0
    weights = jax.tree.map(lambda leaf: flip * leaf, healthy.state.params["weights"])
    state = dataclasses.replace(healthy.state, params={**healthy.state.params, "weights": weights})
    reporter = Silent()
    after = epochs._second_look(
        setup,
        healthy,
        {},
        jnp.asarray(IMAGES),
        labels,
        jax.random.key(0),
        reporter,
        state,
        alarming,
    )
    assert after.alarming == collapsed
    assert len(reporter.notes) == (0 if collapsed else 1)


def test_the_guard_can_be_left_out(tmp_path, monkeypatch, quick_compile):
    monkeypatch.setitem(models.MODELS, "resnet8", lambda classes, scale: Small(8, 8, classes))
    config = dataclasses.replace(TINY, epochs=1, ramp_stop=0.9, guard=False, workdir=str(tmp_path))
    reporter = Silent()
    results = loop.run(config, reporter, "test")
    assert results["retreats"] == []
    assert "probe_pgd" not in reporter.rows[0]
    assert np.isfinite(reporter.rows[0]["loss"])
