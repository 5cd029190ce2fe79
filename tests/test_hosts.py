"""Runs of several processes, on this host: the same result as one process, errors, lost processes.

The processes are real, with one CPU device each. They run the commands.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from folder_data import make_folder

from irp_jax import hosts
from irp_jax.errors import UserError
from irp_jax.inference import layout

ROOT = Path(__file__).parent.parent

NET = """
import flax.linen as nn


class Net(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, train):
        for name, features in (("first", 8), ("second", 8)):
            images = nn.Conv(features, (3, 3), use_bias=False, name=name)(images)
            images = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(images))
        return nn.Dense(self.classes, name="classifier")(images.mean((1, 2)))
"""


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def start(command, flags, processes, *, own=()):
    """Starts the processes of a command.

    Args:
        command: train or evaluate.
        flags: of all processes.
        processes: how many.
        own: flags of each process, if they differ.
    """
    port = free_port()
    # JAX warns of a proxy, which may belong to this machine.
    natural = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = natural | {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
    }  # fmt: skip
    started = []
    for number in range(processes):
        line = [sys.executable, "-P", "-m", f"irp_jax.cli.{command}", *flags]
        if processes > 1:
            line += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
            line += [f"--process={number}", *(own[number] if own else ())]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(line, env=environment, text=True, stdout=pipe, stderr=pipe))
    return started


def finish(started):
    """Waits for processes. Returns the exit code and the lines on stdout and stderr of each.

    What the library of collectives prints is left out.
    """
    ends = []
    for process in started:
        out, err = process.communicate(timeout=300)
        lines = [line for line in out.splitlines() if line and not line.startswith("[Gloo]")]
        ends.append((process.returncode, lines, err.splitlines()))
    return ends


def run(command, flags, processes):
    ends = finish(start(command, flags, processes))
    assert [code for code, _, _ in ends] == [0] * processes, ends
    return ends


def weights(workdir):
    _, variables, _ = layout.read(Path(workdir) / "network")
    return variables["params"] | variables["batch_stats"]


def results(workdir):
    return json.loads((Path(workdir) / "results.json").read_text())


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Returns the settings of a run of 20 steps. The network is compacted after half of them."""
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    return [
        "--dataset=digits", f"--model={file}:Net", "--budget=0.5", "--epochs=4", "--prune-stop=0.5",
        "--train-images=320", "--batch-size=64", "--checkpoint-every=0", "--no-guard",
        "--epsilon=0.02", "--learning-rate=0.5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def of_two(tmp_path_factory, flags):
    """Returns the workdir and the ends of a run by two processes."""
    workdir = tmp_path_factory.mktemp("two")
    return workdir, run("train", [*flags, f"--workdir={workdir}"], 2)


@pytest.fixture(scope="module")
def of_one(tmp_path_factory, flags):
    """Returns the workdir of the same run by one process with one device."""
    workdir = tmp_path_factory.mktemp("one")
    run("train", [*flags, f"--workdir={workdir}"], 1)
    return workdir


@pytest.mark.slow
def test_two_processes_train_the_network_that_one_trains(of_one, of_two):
    workdir, _ = of_two
    one, two = weights(of_one), weights(workdir)
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(two[name], array, rtol=0, atol=1e-5, err_msg=name)
    assert results(workdir)["accuracy"] == results(of_one)["accuracy"]
    assert results(workdir)["identity"] == results(of_one)["identity"]
    environment = results(workdir)["environment"]
    assert (environment["process_count"], environment["device_count"]) == (2, 2)


@pytest.mark.slow
def test_two_processes_read_their_shares_of_a_folder_and_train_the_network_of_one(flags, tmp_path):
    folder = make_folder(tmp_path / "images")
    own = [flag for flag in flags if "train-images" not in flag and "batch-size" not in flag]
    own += [f"--dataset={folder}", "--image-size=16", "--batch-size=32", "--guard"]
    for processes in (1, 2):
        run("train", [*own, f"--workdir={tmp_path / str(processes)}"], processes)
    one, two = (weights(tmp_path / str(processes)) for processes in (1, 2))
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=0, atol=1e-5, err_msg=name)


def test_only_the_first_process_writes_and_reports(of_two):
    workdir, ((_, first, _), (_, second, errors)) = of_two
    assert any("masks frozen" in line for line in first)
    assert second == errors == []
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_finished_run_is_shown_again(of_two, flags):
    workdir, _ = of_two
    (_, first, _), (_, second, _) = run("train", [*flags, f"--workdir={workdir}"], 2)
    assert any("is finished" in line for line in first) and second == []


@pytest.mark.slow
def test_the_run_goes_on_after_a_process_was_killed(of_two, flags, tmp_path):
    started = start("train", [*flags, f"--workdir={tmp_path}"], 2)
    while not list(tmp_path.glob("checkpoints/[12]")):
        assert started[0].poll() is None, started[0].communicate()
        time.sleep(0.01)
    started[1].kill()
    killed = time.monotonic()
    (code, _, errors), _ = finish(started)
    assert time.monotonic() - killed < 60
    assert code in (2, -signal.SIGABRT)
    assert len(errors) == 1 and "another process" in errors[0]
    run("train", [*flags, f"--workdir={tmp_path}"], 2)
    whole, _ = of_two
    assert results(tmp_path)["network_sha256"] == results(whole)["network_sha256"]


@pytest.mark.slow
def test_sigterm_of_one_process_stops_both_within_an_epoch_and_nothing_is_lost(flags, tmp_path):
    several = [*flags, "--batch-size=4", "--learning-rate=0.05", "--epochs=6", "--guard"]
    run("train", [*several, f"--workdir={tmp_path / 'whole'}"], 2)
    folder = tmp_path / "stopped"
    started = start("train", [*several, f"--workdir={folder}"], 2)
    while not list(folder.glob("checkpoints/1")):
        assert started[0].poll() is None, started[0].communicate()
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    ends = finish(started)
    assert [code for code, _, _ in ends] == [128 + signal.SIGTERM] * 2
    run("train", [*several, f"--workdir={folder}"], 2)
    assert results(folder)["network_sha256"] == results(tmp_path / "whole")["network_sha256"]


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_line(flags, tmp_path):
    (tmp_path / "file").write_text("a file where the folder should go")
    ends = finish(start("train", [*flags, f"--workdir={tmp_path / 'file'}"], 2))
    assert [code for code, _, _ in ends] == [2, 2]
    for _, _, errors in ends:
        assert len(errors) == 1 and str(tmp_path / "file") in errors[0]


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(flags, tmp_path):
    own = [["--seed=0"], ["--seed=1"]]
    ends = finish(start("train", [*flags, f"--workdir={tmp_path}"], 2, own=own))
    assert [code for code, _, _ in ends] == [2, 2]
    assert all(len(errors) == 1 for _, _, errors in ends)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_two_processes_measure_the_accuracy_that_one_measures(of_two, tmp_path):
    workdir, _ = of_two
    measured = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        chosen = [f"--checkpoint={workdir}", "--images=100", "--epsilon=0.05", f"--out={out}"]
        run("evaluate", chosen, count)
        measured.append(json.loads(out.read_text())["accuracy"])
    assert measured[0] == measured[1]
    assert not list(workdir.glob("evaluation-*"))


@pytest.mark.slow
def test_two_processes_run_the_autoattack_of_one(of_two, flags, tmp_path):
    workdir, _ = of_two
    model = next(flag for flag in flags if flag.startswith("--model="))
    measured = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        chosen = [f"--checkpoint={workdir}", "--images=60", "--epsilon=0.02", "--attack=autoattack"]
        run("evaluate", [*chosen, model, f"--out={out}"], count)
        measured.append(json.loads(out.read_text())["accuracy"])
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_four_processes_train_the_network_that_one_trains(of_one, flags, tmp_path):
    run("train", [*flags, f"--workdir={tmp_path}"], 4)
    one, four = weights(of_one), weights(tmp_path)
    for name, array in one.items():
        np.testing.assert_allclose(four[name], array, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"coordinator": "host:1234"}, "--processes"),
        ({"process": 1}, "--processes"),
        ({"processes": 0}, "got 0"),
        ({"processes": 2, "process": 2, "coordinator": "host:1234"}, "got 2"),
        ({"processes": 2, "process": -1, "coordinator": "host:1234"}, "got -1"),
        ({"processes": 2, "process": 1}, "--coordinator"),
        ({"processes": 2, "coordinator": "host:1234"}, "--process"),
        ({"processes": 2, "process": 0, "coordinator": "host"}, "host"),
        ({"processes": 2, "process": 0, "coordinator": "host:many"}, "host:many"),
        ({"processes": 2, "process": 0, "coordinator": "host:99999"}, "host:99999"),
    ],
)
def test_values_that_do_not_fit_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        hosts.start(**given)


def test_a_port_in_use_is_refused():
    with socket.socket() as used:
        used.bind(("", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(UserError, match=str(port)):
            hosts.start(f"localhost:{port}", 2, 0)


def test_a_coordinator_that_is_not_there_is_refused_in_time():
    began = time.monotonic()
    with pytest.raises(UserError, match="within 1 s"):
        hosts.start(f"localhost:{free_port()}", 2, 1, wait=1)
    assert time.monotonic() - began < 10


def test_one_process_is_alone():
    hosts.start(processes=1)
    hosts.start("localhost:1234", processes=1, process=0)
    assert hosts.is_first() and not hosts.is_several()


@pytest.mark.parametrize("variables", [{}, {"SLURM_STEP_NODELIST": "node1", "SLURM_NTASKS": "1"}])
def test_a_plain_machine_does_not_wait(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    hosts.start()
    assert not hosts.is_several() and time.monotonic() - began < 5
