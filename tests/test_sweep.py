"""Sweeps: many runs are trained, attacked, collected and published by the commands."""

import dataclasses
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import irp_jax
from irp_jax import config as configs
from irp_jax import machine
from irp_jax.cli import evaluate, publish, report, train
from irp_jax.cli import sweep as sweep_command
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.sweep import one_run
from irp_jax.sweep.child_processes import Commands
from irp_jax.sweep.runs import share_cores

ROOT = Path(__file__).parent.parent

CONFIG = """
from irp_jax.config import Config

configs = [
    Config(model="net.py:Net", dataset="{data}", budget="0.3", epochs=1, batch_size=64, epsilon=0.1,
           method=method, guard=False, defense="none")
    for method in ("lagrangian", "width")
]
"""

NET = """
import flax.linen as nn


class Net(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, train):
        for name in ("first", "second"):
            images = nn.Conv(24, (3, 3), use_bias=False, name=name)(images)
            images = nn.relu(nn.BatchNorm(use_running_average=not train)(images))
        return nn.Dense(self.classes, name="classifier")(images.mean((1, 2)))
"""


def start(folder, *flags):
    command = [sys.executable, "-P", "-m", "irp_jax.cli.sweep"]  # as bin/sweep does
    command += ["--config=mine.py", "--results=results", "--jobs=1"]
    return subprocess.Popen(
        [*command, *flags], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
        },
    )  # fmt: skip


def sweep(folder, attacks):
    with start(folder, f"--attacks={attacks}") as process:
        said, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return said


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    digits = load_digits()
    images, labels = (16 * digits.images).clip(0, 255).astype(np.uint8)[..., None], digits.target
    arrays = {
        "train_images": images[:160], "train_labels": labels[:160],
        "test_images": images[160:200], "test_labels": labels[160:200],
    }  # fmt: skip
    np.savez(folder / "data.npz", **arrays)
    (folder / "net.py").write_text(NET)
    (folder / "mine.py").write_text(CONFIG.format(data=folder / "data.npz"))
    (folder / "random.py").write_text("raise SystemExit('the user has files of their own')")
    return folder, sweep(folder, "pgd-3-2,fgsm")


@pytest.mark.slow
def test_a_sweep_trains_attacks_and_collects(swept):
    folder, said = swept
    assert said.count(" done, ") == 2
    found = [json.loads(path.read_text()) for path in sorted((folder / "results").iterdir())]
    assert {one["method"] for one in found} == {"lagrangian", "width"}
    for one in found:
        accuracy = one["accuracy"]
        assert accuracy["natural"] >= accuracy["fgsm"] >= 0
        assert accuracy["natural"] >= accuracy["pgd-3-2"]
        assert (
            one["attacks"]["pgd-3-2"]["attack"] | {"steps": 3, "restarts": 2, "images": 40}
            == (one["attacks"]["pgd-3-2"]["attack"])
        )


@pytest.mark.slow
def test_both_ways_of_counting_are_collected_and_shown(swept, capsys):
    folder, _ = swept
    for path in sorted((folder / "results").iterdir()):
        accuracy = json.loads(path.read_text())["accuracy"]
        assert accuracy["pgd-last"] >= accuracy["pgd"]
        assert accuracy["pgd-3-2-last"] >= accuracy["pgd-3-2"]
    report.report([f"--results={folder / 'results'}", "--markdown"])
    table = capsys.readouterr().out
    assert "| PGD-10 last % |" in table and "| pgd-3-2 last % |" in table
    with pytest.raises(UserError, match="are always measured"):
        sweep_command.sweep([f"--config={folder / 'mine.py'}", "--attacks=pgd-last"])


@pytest.mark.slow
def test_what_is_collected_is_not_run_again_and_what_is_missing_is(swept):
    folder, _ = swept
    shutil.move(folder / "runs", folder / "elsewhere")
    kept, dropped = sorted((folder / "results").iterdir())
    before, removed = kept.read_bytes(), json.loads(dropped.read_text())
    dropped.unlink()
    said = sweep(folder, "pgd-3-2")
    assert (said.count(" was done, "), said.count(" done, ")) == (1, 2)
    assert kept.read_bytes() == before
    again = json.loads(dropped.read_text())
    assert set(again["accuracy"]) == set(removed["accuracy"]) - {"fgsm"}
    assert again["accuracy"].items() <= removed["accuracy"].items()
    dropped.write_text(json.dumps(removed))
    shutil.rmtree(folder / "runs")
    shutil.move(folder / "elsewhere", folder / "runs")


@pytest.mark.slow
def test_a_sweep_that_is_terminated_takes_its_runs_along(swept, tmp_path):
    folder, _ = swept
    for name in ("mine.py", "net.py"):
        shutil.copy(folder / name, tmp_path)
    with start(tmp_path, "--epochs=200") as process:
        while process.poll() is None and not list(tmp_path.glob("runs/*/.lock")):
            time.sleep(0.1)
        process.terminate()
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "the same command goes on" in error
    (lock,) = tmp_path.glob("runs/*/.lock")  # the second run was not started
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


MINE = Config(dataset="digits", budget="0.3")
THE_NETWORKS = ("network_sha256", "epochs", "cost")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Replaces the commands of a sweep, and lists them. Each gives other accuracies."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(f"from irp_jax.config import Config\nconfig = {MINE!r}\n")
    ran = []

    def run(self, command, flags, log, cores):
        folder, given = log.parent, dict(flag[2:].split("=", 1) for flag in flags)
        ran.append(given.get("attack", command))
        figure = len(ran) / 100
        if command == "evaluate":
            count = int(given.get("images", 360))
            found = {key: None for key in one_run.ATTACK_FACTS}
            found |= {"attack": {"images": count}, "accuracy": {given["attack"]: figure}}
            trained = json.loads((folder / "results.json").read_text())
            found |= {key: trained[key] for key in THE_NETWORKS if key in trained}
            Path(given["out"]).write_text(json.dumps(found))
        elif not (folder / "results.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            config = dataclasses.replace(MINE, seed=int(given.get("seed", 0)))
            found = {"config": configs.settings(config), "wall_time_s": 1.0}
            found |= {"keep_counts": {}, "rollbacks": []}
            found["identity"] = configs.identity(config)
            found |= {"attack": {"images": 360}, "accuracy": {"natural": figure}}
            found["network_sha256"] = f"of training {len(ran)}"
            (folder / "results.json").write_text(json.dumps(found))

    monkeypatch.setattr(Commands, "run", run)
    monkeypatch.setattr(sweep_command, "show_results", lambda _, results: print(len(results)))
    return ran


def collected():
    (path,) = Path("results").iterdir()
    found = json.loads(path.read_text())
    images = {name: attack["attack"]["images"] for name, attack in found["attacks"].items()}
    return path, found["accuracy"], images


def test_fewer_images_do_not_replace_results_on_more_images(ran):
    flags = ["--config=mine.py", "--results=results"]
    sweep_command.sweep([*flags, "--attacks=square,fgsm", "--images=50"])
    sweep_command.sweep([*flags, "--attacks=square"])
    _, before, _ = collected()
    sweep_command.sweep([*flags, "--attacks=square,pgd-margin", "--images=60"])
    _, accuracy, images = collected()
    assert images == {"square": 360, "fgsm": 50, "pgd-margin": 60}
    assert accuracy == before | {"pgd-margin": 0.07}
    assert ran == ["train", "square", "fgsm", "train", "square", "train", "pgd-margin"]
    sweep_command.sweep([*flags, "--attacks=pgd-margin,square", "--images=60"])
    assert len(ran) == 7


def test_python_does_the_same(ran):
    runs = [dataclasses.replace(MINE, seed=seed) for seed in (0, 1)]
    settings = {"attacks": ["square"], "results": "results", "jobs": 1, "progress": False}
    found = irp_jax.train_many(runs, **settings)
    assert [one["config"]["seed"] for one in found] == [0, 1]
    assert all("square" in one["accuracy"] for one in found)
    assert irp_jax.train_many(runs, **settings) == found
    assert ran == ["train", "square"] * 2
    shutil.rmtree("runs")
    irp_jax.train_many(runs[:1], progress=False)  # into a folder that is not there yet
    with pytest.raises(UserError, match="a run of type str"):
        irp_jax.train_many(["resnet8"])
    with pytest.raises(UserError, match="jobs must be at least 1"):
        irp_jax.train_many(runs, jobs=-1)
    with pytest.raises(UserError, match="same settings"):
        irp_jax.train_many([MINE, MINE])
    with pytest.raises(UserError, match="unknown attack"):
        irp_jax.train_many([MINE], attacks=["sqare"])


def test_figures_of_another_network_are_not_taken_for_those_of_a_new_one(ran):
    flags = ["--config=mine.py", "--results=results", "--attacks=square"]
    sweep_command.sweep(flags)
    (run,) = Path("runs").iterdir()
    path, before, _ = collected()
    path.unlink()
    (run / "results.json").unlink()  # as if it was trained again on another machine
    os.utime(run / "square.json", (2**32, 2**32))  # a clock that was wrong
    sweep_command.sweep(flags)
    assert ran == ["train", "square"] * 2
    assert collected()[1]["square"] != before["square"]


def test_nor_are_collected_figures_without_a_digest(ran):
    flags = ["--config=mine.py", "--results=results"]
    sweep_command.sweep([*flags, "--attacks=square"])
    (run,) = Path("runs").iterdir()
    path, before, _ = collected()
    found = json.loads(path.read_text())
    del found["network_sha256"]
    path.write_text(json.dumps(found))
    (run / "square.json").unlink()
    sweep_command.sweep([*flags, "--attacks=square,fgsm"])
    assert ran == ["train", "square", "train", "square", "fgsm"]
    assert collected()[1]["square"] != before["square"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"config": {}, "accuracy": {}, "attack": {}}'])
def test_results_of_another_run_are_not_written_over(ran, text):
    flags = ["--config=mine.py", "--results=results"]
    sweep_command.sweep(flags)
    path, _, _ = collected()
    path.write_text(text)
    with pytest.raises(UserError, match="does not hold results of this run"):
        sweep_command.sweep(flags)
    assert path.read_text() == text and len(ran) == 1


def test_results_of_another_version_are_refused_and_kept(ran):
    flags = ["--config=mine.py", "--results=results"]
    sweep_command.sweep(flags)
    path, _, _ = collected()
    found = json.loads(path.read_text())
    found["kept"], found["retreats"] = found.pop("keep_counts"), found.pop("rollbacks")
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"is of another version .* another --results"):
        sweep_command.sweep(flags)
    assert json.loads(path.read_text()) == found and len(ran) == 1


def test_a_failure_is_reported_with_the_message_of_the_command(ran, monkeypatch):
    def run(self, command, flags, log, cores):
        raise UserError("no network: give --data-dir")

    monkeypatch.setattr(Commands, "run", run)
    monkeypatch.setattr(sweep_command, "show_results", lambda *_: pytest.fail("an empty table"))
    with pytest.raises(UserError, match=r"1 of 1 runs failed; .*log.txt\): no network: give --d"):
        sweep_command.sweep(["--config=mine.py"])


@pytest.mark.parametrize("flag", ["--workdir", "--results"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_output_folders_are_checked_before_training(ran, flag, place):
    Path("file").write_text("")
    with pytest.raises(UserError, match=f"cannot use {place} as a folder .*: choose another"):
        sweep_command.sweep(["--config=mine.py", f"{flag}={place}"])
    assert not ran


def test_a_run_that_cannot_be_attacked_leaves_the_others_their_turn(ran, monkeypatch, capsys):
    inner = Commands.run

    def run(self, command, flags, log, cores):
        inner(self, command, flags, log, cores)
        target = Path(dict(flag.split("=", 1) for flag in flags).get("--out", ""))
        if command == "evaluate" and len(ran) == 2:  # as if the last checkpoint could not be read
            found = json.loads(target.read_text()) | {"network_sha256": "of the one before"}
            target.write_text(json.dumps(found))

    monkeypatch.setattr(Commands, "run", run)
    flags = ["--config=mine.py", "--seeds=0,1,2", "--jobs=1", "--results=results"]
    with pytest.raises(UserError, match=r"1 of 3 runs failed; .*: the last checkpoint in "):
        sweep_command.sweep([*flags, "--attacks=square"])
    assert ran == ["train", "square"] * 3 and len(list(Path("results").glob("*.json"))) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "2"


def test_runs_that_share_an_accelerator_have_all_cores_and_no_more_memory_than_they_need(
    ran, monkeypatch
):
    inner, seen = Commands.run, []

    def run(self, command, flags, log, cores):
        seen.append((cores, os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")))
        inner(self, command, flags, log, cores)

    monkeypatch.setattr(Commands, "run", run)
    monkeypatch.setattr(machine, "has_accelerator", lambda: True)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    sweep_command.sweep(["--config=mine.py", "--seeds=0,1", "--jobs=2"])
    assert seen == [(set(machine.core_numbers()), "false")] * 2


@pytest.mark.parametrize(("seeds", "shares"), [("0", [{0, 1, 2, 3}]), ("0,1", [{0, 1}, {2, 3}])])
def test_few_runs_share_all_cores(ran, monkeypatch, seeds, shares):
    inner, seen = Commands.run, []

    def run(self, command, flags, log, cores):
        seen.append(cores)
        inner(self, command, flags, log, cores)

    monkeypatch.setattr(Commands, "run", run)
    monkeypatch.setattr(machine, "has_accelerator", lambda: False)
    monkeypatch.setattr(machine, "core_numbers", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(machine, "cores", lambda: 4)
    sweep_command.sweep(["--config=mine.py", f"--seeds={seeds}"])
    assert sorted(seen, key=min) == shares


@pytest.mark.parametrize(("cores", "jobs", "shares"), [
    (4, 2, [{0, 1}, {2, 3}]), (4, 3, [{0}, {1}, {2}]), (2, 3, [{0}, {1}, {0}]), (3, 1, [{0, 1, 2}]),
])  # fmt: skip
def test_all_trials_of_a_sweep_get_as_many_cores(cores, jobs, shares):
    assert share_cores(list(range(cores)), jobs) == shares


@pytest.mark.slow
def test_a_network_is_published_with_a_model_card(swept, monkeypatch, capsys):
    folder, _ = swept
    monkeypatch.chdir(folder)
    results = sorted((folder / "results").iterdir())[0]
    run = folder / "runs" / results.stem
    publish.publish([f"--run={run}", f"--results={results}", "--into=zoo/small"])
    card = (folder / "zoo" / "small" / "README.md").read_text()
    found = json.loads(results.read_text())
    assert f"{100 * found['accuracy']['pgd-3-2']:.2f} | 40 | `bin/evaluate" in card
    assert "--checkpoint=zoo/small --dataset=data.npz --attack=pgd --steps=3" in card
    assert f"{found['cost']['params']:,} parameters" in " ".join(card.split())
    published = b"".join(p.read_bytes() for p in Path("zoo").rglob("*") if p.is_file())
    assert str(folder).encode() not in published, "no place on this machine"
    (command,) = [
        line.split("`")[1] for line in card.splitlines() if line.startswith("| pgd-3-2 |")
    ]
    evaluate.evaluate([*shlex.split(command)[1:], "--out=again.json"])
    again = json.loads(Path("again.json").read_text())
    assert again["accuracy"]["pgd"] == found["accuracy"]["pgd-3-2"]
    assert again["network_sha256"] == found["network_sha256"]
    before = sorted(Path("zoo").rglob("*"))
    with pytest.raises(UserError, match=r"not of a run of this version"):
        train.train([*shlex.split(found["command"])[1:], "--workdir=zoo/small"])
    assert set(before) <= set(Path("zoo").rglob("*")), "what is handed on is not a run to resume"
    other = sorted((folder / "results").iterdir())[1]
    with pytest.raises(UserError, match="exists"):
        publish.publish([f"--run={folder / 'runs' / other.stem}", "--into=zoo/small"])
    with pytest.raises(UserError, match="of another network"):
        publish.publish([f"--run={run}", f"--results={other}", "--into=zoo/other"])
    publish.publish(["--run=zoo/small", f"--results={results}", "--into=zoo/small"])
    assert (folder / "zoo" / "small" / "README.md").read_text() == card
    Path("elsewhere.json").write_text(json.dumps(found | {"network_sha256": "0" * 64}))
    with pytest.raises(UserError, match="of another network"):
        publish.publish([f"--run={run}", "--results=elsewhere.json", "--into=zoo/other"])
    capsys.readouterr()
    report.report(["results", "--markdown"])
    assert "lagrangian" in capsys.readouterr().out
