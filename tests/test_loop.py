"""Whole runs on digits: they meet the budget, resume bit for bit, and can be loaded."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baseline_nets import Net as Small
from silent import Silent

from irp_jax import checkpoint, evaluation, files, loading, models
from irp_jax import config as configs
from irp_jax.cli import evaluate as command
from irp_jax.cli.train import train
from irp_jax.config import Config
from irp_jax.data import load
from irp_jax.errors import UserError
from irp_jax.publishing import publish
from irp_jax.training import experiment, prepare
from irp_jax.training.preemption import Preempted, Preemption, on_sigterm

ROOT = Path(__file__).parent.parent

TINY = configs.suited("digits", Config(model="resnet8", budget="0.3", checkpoint_every=0.0))
TINY = dataclasses.replace(
    TINY, epochs=4, prune_stop=0.5, train_images=256, batch_size=64, epsilon_warmup=0.6
)


NET = """
import flax.linen as nn


class Net(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, train):
        for name, features in (("first", 24), ("second", 24)):
            images = nn.Conv(features, (3, 3), use_bias=False, name=name)(images)
            images = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(images))
        return nn.Dense(self.classes, name="classifier")(images.mean((1, 2)))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Returns TINY with a network that compiles fast, from a file that all processes can read."""
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    return dataclasses.replace(TINY, model=f"{file}:Net")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """Returns the config, the results and the output of a run that was started by the command."""
    config = dataclasses.replace(tiny, workdir=str(tmp_path_factory.mktemp("run")))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train(configs.flags(config))
    return (
        config,
        json.loads((Path(config.workdir) / "results.json").read_text()),
        output.getvalue(),
    )


@pytest.fixture
def small(monkeypatch):
    """Uses a network that compiles fast, for tests that do not depend on the network."""
    monkeypatch.setitem(models.MODELS, "resnet8", lambda scale, classes, act: Small(8, 8, classes))


def last(config):
    saved = checkpoint.restore(Path(config.workdir) / "checkpoints", None, print)
    return saved.epoch, checkpoint.digest(saved.network)


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_usual_generator(quick_runs, tmp_path):
    def network_of(generator):
        jax.config.update("jax_default_prng_impl", generator)
        try:
            config = dataclasses.replace(TINY, epochs=1, workdir=str(tmp_path / generator))
            return experiment.run(config, Silent(), "bin/train")["network_sha256"]
        finally:
            jax.config.update("jax_default_prng_impl", "threefry2x32")

    assert network_of("rbg") == network_of("threefry2x32")


def test_the_results_have_every_key_and_meet_the_budget(finished):
    _, results, output = finished
    keys = "model dataset method seed budget cost accuracy attack epochs wall_time_s images_per_s"
    assert {*keys.split(), "environment", "command", "commit"} <= set(results)
    assert (results["passes_per_image"], results["rollbacks"]) == (8.0, [])
    assert set(results["accuracy"]) == {"natural", "pgd", "pgd-last"}
    assert 0.97 * 0.3 <= results["cost"]["macs_ratio"] <= 0.3
    found = results["accuracy"]
    assert found["natural"] >= found["pgd-last"] >= found["pgd"]
    history = results["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["frozen"] for row in history] == [False, False, True, True]
    assert history[-1]["loss"] < history[0]["loss"]
    # The wall time includes loading, compilation and the final attack.
    assert history[0]["seconds"] > 256 / history[0]["images_per_s"]
    assert results["wall_time_s"] > history[-1]["seconds"]
    assert "masks frozen" in output
    assert "\x1b" not in output, "plain lines when not a terminal"


def test_the_checkpoint_alone_gives_the_network_that_was_reported(finished):
    config, results, _ = finished
    net = loading.load(config.workdir, print)
    assert net.cost == results["cost"]
    assert checkpoint.digest(net.variables) == results["network_sha256"]
    saved = loading.load(Path(config.workdir) / "network")
    assert checkpoint.digest(saved.variables) == results["network_sha256"]
    assert saved.record == net.record
    assert saved.history == results["history"]
    arrays = jax.tree.leaves(net.variables["params"])
    assert sum(a.size for a in arrays) == results["cost"]["params"]
    test = load("digits").test
    spec = evaluation.AttackSpec(epsilon=config.epsilon)
    report = evaluation.evaluate(net.apply, net.variables, test.images, test.labels, spec)
    assert report.natural == pytest.approx(results["accuracy"]["natural"], abs=0.003)
    assert report.robust == pytest.approx(results["accuracy"]["pgd"], abs=0.006)
    assert saved.evaluate().accuracy == report.accuracy, "on the data set of the run"


def evaluate(config, tmp_path, *flags):
    """Returns what bin/evaluate writes for the first 60 test images."""
    out = tmp_path / "out.json"
    common = [f"--checkpoint={config.workdir}", "--images=60", "--batch-size=60", f"--out={out}"]
    command.evaluate([*common, *flags])
    return json.loads(out.read_text())


def test_an_evaluation_goes_on_with_its_own_network_only(finished, tmp_path):
    config, _, _ = finished
    net = loading.load(config.workdir, print)
    options = command.Options(checkpoint=config.workdir, attack="fgsm")
    spec = command.spec_of(options, config.epsilon)
    moved = jax.tree.map(lambda leaf: leaf + 1, net.variables)
    earlier = command.state_file_of(
        options, dataclasses.replace(net, variables=moved), spec, images=60
    )
    assert earlier != command.state_file_of(options, net, spec, images=60)
    earlier.write_bytes(b"what another network left")
    evaluate(config, tmp_path, "--attack=fgsm")
    assert not earlier.exists()


def test_bin_evaluate_draws_a_curve(finished, tmp_path):
    config, _, _ = finished
    results = evaluate(config, tmp_path, "--attack=fgsm", "--epsilons=0.1,0,0.02,12/255")
    curve = results["curve"]
    assert curve["epsilon"] == pytest.approx([0, 0.02, 12 / 255, 0.1])
    assert curve["accuracy"][0] == results["accuracy"]["natural"]
    assert curve["accuracy"] == sorted(curve["accuracy"], reverse=True)
    assert results["command"].startswith("bin/evaluate --checkpoint=runs/")
    assert str(tmp_path) not in json.dumps(results)
    assert not list(Path(config.workdir).glob("evaluation-*")), "nothing left to go on from"


def test_bin_evaluate_saves_what_it_found_and_corrupts(finished, tmp_path):
    config, _, _ = finished
    found, picture = tmp_path / "found.npz", tmp_path / "found.png"
    results = evaluate(
        config,
        tmp_path,
        "--attack=pgd",
        "--steps=3",
        "--corruptions",
        f"--save-adversarial={found}",
    )
    assert set(results["accuracy"]) == {"natural", "pgd", "pgd-last", "corrupted"}
    assert len(results["corruptions"]) == 15
    assert all(len(values) == 5 for values in results["corruptions"].values())
    assert picture.read_bytes().startswith(b"\x89PNG")
    with np.load(found) as saved:
        assert saved["is_robust"].mean() == pytest.approx(results["accuracy"]["pgd"])
        wrong = saved["predictions"] != saved["labels"]
        np.testing.assert_array_equal(wrong, ~saved["is_robust"])
        assert json.loads(str(saved["attack"])) == results["attack"]
        assert saved["network_sha256"] == results["network_sha256"]
        assert np.abs(saved["images"] - load("digits").test.images[:60] / 255).max() <= 0.1 + 1e-5


@pytest.mark.slow
def test_a_run_killed_before_and_after_the_freeze_resumes_to_the_identical_result(
    finished, tiny, tmp_path
):
    config = dataclasses.replace(tiny, workdir=str(tmp_path))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    for epoch in (1, 3):
        process = subprocess.Popen(
            [sys.executable, "-m", "irp_jax.cli.train", *configs.flags(config)],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 200
        while not (tmp_path / "checkpoints" / str(epoch)).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    resumed = Silent()
    results = experiment.run(config, resumed, "bin/train")
    assert any(note.startswith("resuming after epoch") for note in resumed.notes)
    assert last(config) == last(finished[0])
    assert results["accuracy"] == finished[1]["accuracy"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [row["loss"] for row in finished[1]["history"]]


class Stopped(Silent):
    """Sends SIGTERM to this process in or after an epoch, as a scheduler does."""

    def __init__(self, within: int | None = None, after: int | None = None):
        super().__init__()
        self.within, self.after = within, after

    def progress(self, steps, images_per_s, metrics):
        if len(self.rows) + 1 == self.within:
            os.kill(os.getpid(), signal.SIGTERM)

    def epoch(self, row):
        super().epoch(row)
        if len(self.rows) == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_stopped_by_sigterm_saves_its_state_and_resumes_to_the_identical_result(
    finished, tiny, tmp_path
):
    seldom = dataclasses.replace(tiny, workdir=str(tmp_path), checkpoint_every=1e9)
    often = dataclasses.replace(seldom, checkpoint_every=0.0)
    before = signal.getsignal(signal.SIGTERM)
    for config, reporter, saved in (
        (seldom, Stopped(within=1), 1),  # in the last segment, so that the epoch ends
        (seldom, Stopped(after=1), 2),
        (often, Stopped(within=1), 3),
        (seldom, Stopped(after=1), 4),  # the last one
    ):
        with pytest.raises(SystemExit) as stopped:
            experiment.run(config, reporter, "bin/train")
        assert stopped.value.code == 128 + signal.SIGTERM
        assert sum("SIGTERM" in note for note in reporter.notes) == 1
        found = checkpoint.restore(tmp_path / "checkpoints", None, print)
        assert (found and found.epoch) == saved
    results = experiment.run(seldom, Silent(), "bin/train")
    assert signal.getsignal(signal.SIGTERM) is before
    assert last(seldom) == last(finished[0])
    assert results["network_sha256"] == finished[1]["network_sha256"]
    assert [row["loss"] for row in results["history"]] == [
        row["loss"] for row in finished[1]["history"]
    ]


def test_an_epoch_that_is_not_saved_ends_before_sigterm_stops_the_run():
    preemption = Preemption()
    preemption.hold()
    preemption.ask()
    assert preemption.asked
    with pytest.raises(Preempted):
        preemption.release()
    with pytest.raises(Preempted):
        preemption.ask()


def test_a_handler_of_the_caller_is_kept():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        with on_sigterm(print) as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [True]
        assert not preemption.asked
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_finished_run_is_shown_not_repeated(finished):
    again = Silent()
    path = Path(finished[0].workdir) / "results.json"
    own = path.read_text()
    path.write_text(json.dumps({"accuracy": {"natural": 1.0}}))  # as of bin/evaluate --out
    with pytest.raises(UserError, match=r"results\.json is not of this run"):
        experiment.run(finished[0], again, "bin/train")
    older = json.loads(own)
    older["kept"], older["retreats"] = older.pop("keep_counts"), older.pop("rollbacks")
    path.write_text(json.dumps(older | {"method": "priced"}))
    with pytest.raises(UserError, match=r"results\.json is of another version .* --workdir"):
        experiment.run(finished[0], again, "bin/train")
    path.write_text(own)
    results = experiment.run(finished[0], again, "bin/train")
    assert again.rows == []
    assert results["accuracy"] == finished[1]["accuracy"]


def test_a_run_that_lost_files_or_found_the_disk_full_gives_the_identical_result(
    finished, tmp_path, monkeypatch
):
    config = dataclasses.replace(finished[0], workdir=str(tmp_path / "run"))
    run = Path(shutil.copytree(finished[0].workdir, config.workdir))
    for name in ("config.json", "results.json"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=f"{name}.*move it away"):
            experiment.run(config, Silent(), "bin/train")
        (run / name).unlink()
    shutil.rmtree(run / "network")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match="free some space"):
            experiment.run(config, Silent(), "bin/train")
    left = {path.name for path in run.iterdir()}
    assert left == {".lock", "checkpoints", "metrics.jsonl"}
    results = experiment.run(config, Silent(), "bin/train")
    for key in ("network_sha256", "accuracy", "history"):
        assert results[key] == finished[1][key]


def test_a_checkpoint_of_another_version_is_called_so(finished, tmp_path):
    saved = checkpoint.restore(Path(finished[0].workdir) / "checkpoints", None, print)
    loading.of(saved, finished[0].model)
    ours = {"name": "resnet8", "width": 1.0, "activation": "relu"}
    for number, missing in enumerate(("keep_counts", "groups", "activation")):
        record = json.loads(json.dumps(saved.record))
        record["network"]["model"] = dict(ours)
        place = record["network"] if missing in record["network"] else record["network"]["model"]
        place["older name"] = place.pop(missing)
        folder = tmp_path / str(number)
        checkpoint.save(folder / "checkpoints", 4, saved.network, None, record)
        with pytest.raises(UserError, match="holds a checkpoint of another version of irp_jax"):
            loading.load(folder, print)


@pytest.mark.slow
def test_weight_masks_leave_zeros_that_are_counted(tmp_path, small):
    config = dataclasses.replace(
        TINY, granularity="weight", epochs=2, defense="none", guard=False, workdir=str(tmp_path)
    )
    results = experiment.run(config, Silent(), "bin/train")
    assert 0.97 * 0.3 <= results["cost"]["macs_ratio"] <= 0.3
    net = loading.load(str(tmp_path), print)
    kernels = [a for a in jax.tree.leaves(net.variables["params"]) if a.ndim == 4]
    assert sum(int(np.count_nonzero(a)) for a in kernels) <= sum(results["keep_counts"].values())
    assert set(results["keep_counts"]) == {"first/kernel", "second/kernel"}
    assert net.cost == results["cost"]


def test_the_published_method_runs_in_the_same_loop(tmp_path, small):
    config = dataclasses.replace(
        TINY, method="hinge", epochs=1, defense="none", guard=False, workdir=str(tmp_path)
    )
    results = experiment.run(config, Silent(), "bin/train")
    assert results["method"] == "hinge"
    assert 0 < results["cost"]["macs_ratio"] <= 1


@pytest.mark.slow
def test_settings_can_be_chosen_without_a_look_at_the_test_images(tmp_path, small):
    config = dataclasses.replace(
        TINY, epochs=1, validation=0.2, evaluate_on="validation", workdir=str(tmp_path / "run")
    )
    results = experiment.run(config, Silent(), "bin/train")
    held_out = load("digits", validation_fraction=0.2).validation
    assert results["attack"]["images"] == len(held_out)
    net = loading.load(config.workdir, print)
    right = net.apply(net.variables, jnp.asarray(held_out.images / np.float32(255))).argmax(-1)
    natural = float((right == held_out.labels).mean())
    assert results["accuracy"]["natural"] == pytest.approx(natural, abs=0.003)
    found = evaluate(config, tmp_path, "--attack=none", "--split=validation")
    few = held_out.labels[:60] == np.asarray(right)[:60]
    assert found["accuracy"]["natural"] == pytest.approx(few.mean(), abs=0.02)
    assert found["attack"]["split"] == "validation"
    run = Path(config.workdir)
    with pytest.raises(UserError, match="train with --evaluate-on=test"):
        publish(run, run / "results.json", tmp_path / "zoo", print)
    with pytest.raises(UserError, match=r"there is no .*none\.json: give the results\.json"):
        publish(run, run / "none.json", tmp_path / "zoo", print)


def test_a_share_to_hold_out_is_idle_where_the_file_brings_its_own_images():
    file = Config(dataset="mine.npz", validation=0.2)
    own, drawn = (
        SimpleNamespace(train=range(n), validation=range(90 - n), image_shape=(8, 8, 1))
        for n in (80, 72)
    )
    (line,) = prepare.validation_note(file, own)
    assert line == "--validation changes nothing: mine.npz has 10 images held out already"
    assert prepare.validation_note(file, drawn) == []
    assert prepare.validation_note(dataclasses.replace(file, validation=0.02), own) == []


def test_a_workdir_of_another_run_is_refused_and_untouched(finished):
    config, _, _ = finished
    before = {p: p.stat().st_mtime_ns for p in Path(config.workdir).rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="epochs=4, not 5"):
        experiment.run(dataclasses.replace(config, epochs=5), Silent(), "bin/train")
    given = json.loads((Path(config.workdir) / "config.json").read_text())
    assert given["settings"] == configs.settings(config)
    assert configs.identity(config).items() <= given["identity"].items()
    assert given["settings"]["batch_size"] == 64 and "channels" not in given["identity"]
    other = configs.identity(config) | {"channels": "stem=9"}
    with (
        pytest.raises(UserError, match="channels=default, not stem=9"),
        files.lock(Path(config.workdir), other),
    ):
        pass
    del before[Path(config.workdir) / ".lock"]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "0.0001"}, "least possible is 0.0"),
        ({"budget": "0.1k", "cost": "params"}, r"least possible is [0-9.]+k \("),
        ({"budget": "0.1", "width": 0.13}, "least possible is .*; --width=0.13 leaves it little"),
        ({"budget": "0.3", "width": 0.001}, "resnet8 has nothing to prune: all its channels"),
        ({"budget": "5M", "cost": "params"}, "more than the whole network"),
        ({"batch_size": 9999}, "larger than"),
        ({"evaluate_on": "validation", "validation": 0.0}, "--validation=0 holds out none of"),
    ],
)
def test_what_cannot_be_done_leaves_nothing_behind(tmp_path, change, message):
    config = dataclasses.replace(TINY, workdir=str(tmp_path / "run"), **change)
    with pytest.raises(UserError, match=message):
        experiment.run(config, Silent(), "bin/train")
    assert not (tmp_path / "run").exists()
