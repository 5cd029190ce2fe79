"""Sweeps that are divided: among processes that share a folder, in parts, and as jobs."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import fake_sweep
import pytest
from rich.console import Console

from irp_jax import files
from irp_jax.cli import sweep
from irp_jax.errors import UserError
from irp_jax.sweep import slurm
from irp_jax.sweep.child_processes import Commands

ROOT = Path(__file__).parent.parent
CONFIG = "from irp_jax.config import Config\nconfig = Config(dataset='digits', budget='0.3'{})\n"
FAKE = [str(ROOT / "tests" / "fake_sweep.py")]
QUICK = ", model='resnet8', epochs=2, guard=False"
REAL = ["-m", "irp_jax.cli.sweep"]


def start(folder, number, command, *flags):
    """Starts a sweep. Its output goes to a file with a number."""
    with open(folder / f"said{number}", "w") as said:
        return subprocess.Popen(
            [sys.executable, "-P", *command, "--config=mine.py", "--results=results", *flags],
            cwd=folder, stdout=said, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a config. Sweeps of this process train nothing."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(CONFIG.format(""))
    monkeypatch.setattr(Commands, "run", fake_sweep.run)
    monkeypatch.setattr(fake_sweep, "SECONDS", 0)
    monkeypatch.setattr(sweep, "show_results", lambda *_: None)
    return tmp_path


def begun(folder):
    """Returns (seed, process) of each run that was begun."""
    path = folder / "begun"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(int(word) for word in line.split()) for line in lines]


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def check_results(folder, count):
    found = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    assert sorted(one["config"].get("seed", 0) for one in found) == list(range(count))
    assert not list((folder / "results").glob(".*"))


def test_two_processes_share_the_runs_and_one_finishes_those_of_the_other(tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG.format(""))
    flags = ["--seeds=0,1,2,3,4,5,6,7", "--jobs=1", "--stale=1000"]
    first, second = (start(tmp_path, number, FAKE, *flags) for number in (1, 2))
    try:
        wait_for(lambda: len({process for _, process in begun(tmp_path)}) == 2, 120)
        first.kill()
        first.wait()
        *_, doing = (seed for seed, process in begun(tmp_path) if process == first.pid)
        assert second.wait(60) == 0
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    times = Counter(seed for seed, _ in begun(tmp_path))
    assert len(times) == 8
    assert times.pop(doing) <= 2 and set(times.values()) == {1}
    assert (tmp_path / "said2").read_text().splitlines()[-1] == "8 results"
    check_results(tmp_path, 8)


@pytest.mark.slow
def test_two_processes_share_twelve_real_runs_and_one_is_killed(tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG.format(QUICK))
    flags = ["--seeds=0,1,2,3,4,5,6,7,8,9,10,11", "--jobs=1"]
    first, second = (start(tmp_path, number, REAL, *flags) for number in (1, 2))
    try:
        wait_for(lambda: len(list(tmp_path.glob("results/*.json"))) >= 2, 900)
        wait_for(lambda: len(list(tmp_path.glob("results/.*.claim"))) == 2, 120)
        first.kill()  # its command, which trains, ends by itself
        first.wait()
        assert second.wait(1800) == 0, (tmp_path / "said2").read_text()
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    check_results(tmp_path, 12)
    logs = [path.read_text() for path in tmp_path.glob("runs/*/log.txt")]
    assert len(logs) == 12 and sum(text.count("$ bin/train") for text in logs) <= 13


def test_parts_are_disjoint_and_together_all_runs(here):
    parts = []
    for part in (1, 2, 3):
        already = len(begun(here))
        sweep.sweep(["--config=mine.py", "--seeds=0,1,2,3,4", f"--shard={part}/3", "--jobs=1",
                     f"--results=results{part}"])  # fmt: skip
        parts.append([seed for seed, _ in begun(here)[already:]])
    assert parts == [[0, 3], [1, 4], [2]]
    for part in (1, 2, 3):
        shutil.copytree(f"results{part}", "results", dirs_exist_ok=True)
    check_results(here, 5)
    sweep.sweep(["--config=mine.py", "--seeds=0,1,2,3,4", "--results=results"])
    assert len(begun(here)) == 5


def test_a_part_without_a_run_is_no_error(here, capsys):
    sweep.sweep(["--config=mine.py", "--seeds=0,1", "--shard=3/3"])
    assert "3/3" in capsys.readouterr().out and not begun(here)


def test_a_run_that_fails_here_is_free_for_others(here, monkeypatch):
    def run(self, command, flags, log, cores):
        raise UserError("no such data")

    flags = ["--config=mine.py", "--results=results", "--stale=1000"]
    monkeypatch.setattr(Commands, "run", run)
    with pytest.raises(UserError, match=r"1 of 1 runs failed.* no such data"):
        sweep.sweep(flags)
    monkeypatch.setattr(Commands, "run", fake_sweep.run)
    sweep.sweep(flags)
    check_results(here, 1)


def test_a_run_whose_folder_is_in_use_is_waited_for(here):
    sweep.sweep(["--config=mine.py"])
    (run,) = (path for path in Path("runs").iterdir() if path.is_dir())
    (run / "results.json").unlink()
    Path("begun").unlink()
    held, seen = threading.Event(), []

    def hold():
        with files.lock(run, {}):
            held.set()
            time.sleep(1)
            seen.extend(begun(here))

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    sweep.sweep(["--config=mine.py", "--results=results", "--stale=1"])
    holder.join()
    assert not seen and len(begun(here)) == 1


@pytest.mark.parametrize(("flags", "said"), [
    (["--shard=3/2"], "3/2"),
    (["--shard=0/2"], "0/2"),
    (["--shard=half"], "half"),
    (["--stale=0"], "--stale"),
    (["--stale=nan"], "--stale"),
    (["--launcher=slrum"], "slurm"),
    (["--slurm=time=60"], "--launcher"),
    (["--launcher=local", "--shard=1/2"], "--shard"),
    (["--launcher=local", "--jobs=2"], "--jobs"),
    (["--launcher=slurm", "--slurm=queue=gpu"], "queue"),
    (["--launcher=slurm", "--slurm=time=1h"], "time"),
    (["--launcher=slurm", "--slurm=partition"], "partition"),
])  # fmt: skip
def test_bad_input_is_one_line(here, flags, said):
    with pytest.raises(UserError, match=said):
        sweep.sweep(["--config=mine.py", *flags])
    assert [path.name for path in here.iterdir()] == ["mine.py"]


def test_slurm_that_is_absent_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="slurm"):
        slurm.launch("slurm", "partition=gpu,gpus=1", [["--help"]], tmp_path, Console())


def test_jobs_run_the_command_and_a_failure_names_its_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # as bin/ does
    shards = [["--help"], ["--shard=3/2"]]
    with pytest.raises(UserError, match="1 of 2 jobs failed") as failure:
        slurm.launch("local", "time=1", shards, tmp_path / "jobs", Console())
    log = Path(str(failure.value).split()[-1])
    assert "error: --shard must be I/N" in log.read_text()
    slurm.launch("local", None, [], tmp_path, Console())
    assert "all runs are done" in capsys.readouterr().out


@pytest.mark.slow
def test_each_missing_run_is_a_job(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(CONFIG.format(QUICK))
    flags = ["--config=mine.py", "--seeds=0,1,2", "--results=results"]
    sweep.sweep([*flags, "--launcher=local", "--slurm=time=30"])
    check_results(tmp_path, 3)
    jobs = set(Path("runs/jobs").glob("*_0_log.out"))
    assert len(jobs) == 3
    next(Path("results").iterdir()).unlink()
    sweep.sweep([*flags, "--launcher=local", "--slurm=time=30"])
    check_results(tmp_path, 3)
    assert len(set(Path("runs/jobs").glob("*_0_log.out")) - jobs) == 1
