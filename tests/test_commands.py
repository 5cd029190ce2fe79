"""Commands that run at once stop together, and each reports its own error."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from irp_jax import machine
from irp_jax.errors import UserError
from irp_jax.sweep import child_processes
from irp_jax.sweep.child_processes import Commands

ROOT = Path(__file__).parent.parent


def test_a_signal_that_is_ignored_stays_ignored():
    running = Commands()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    others = signal.getsignal(signal.SIGTERM)
    try:
        with running.stopped_together():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) is not others
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not running.stopping.is_set()
    assert signal.getsignal(signal.SIGTERM) is others


def test_a_command_begun_while_the_sweep_stops_is_stopped_too(tmp_path):
    running, log = Commands(), tmp_path / "of" / "log.txt"
    running.stopping.set()
    before, (core, *_) = machine.core_numbers(), machine.core_numbers()
    flags = ["--dataset=digits", "--epochs=1000", f"--workdir={tmp_path}/run"]
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(running.run, "train", flags, log, {core})
        try:
            with pytest.raises(UserError, match=r"bin/train ended with code -15"):
                begun.result(timeout=60)
        finally:
            for child in running.running:
                child.kill()
    assert not running.running
    assert log.read_text() == "$ bin/train " + " ".join(flags) + "\n"
    assert machine.core_numbers() == before


def test_the_error_of_a_command_is_its_own_last_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as bin/ does
    log = tmp_path / "log.txt"
    before = "$ bin/train\nerror: of another day\n"
    log.write_text(before + "$ bin/train\nerror: in use by another run\n└──┘ of that run\n")
    assert child_processes.last_error(log, len(before)) == "in use by another run"
    assert child_processes.last_error(log, log.stat().st_size) is None
    with ThreadPoolExecutor(1) as pool:
        cores = set(machine.core_numbers())
        running = pool.submit(Commands().run, "train", ["--budget=16"], log, cores)
        with pytest.raises(UserError, match=r"^budget must be in .* did you mean 0\.16"):
            running.result(timeout=60)


CHILD = """
import time
from irp_jax.sweep.parent import end_with_parent
end_with_parent()
print("begun", flush=True)
time.sleep(1000)
"""
PARENT = f"""
import subprocess, sys
from irp_jax.sweep.parent import child_environment
subprocess.run([sys.executable, "-P", "-c", {CHILD!r}], env=child_environment())
"""


def test_a_command_ends_when_the_process_that_started_it_is_killed():
    with subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as parent:  # fmt: skip
        assert parent.stdout.readline() == "begun\n"
        parent.kill()
        begin = time.monotonic()
        assert parent.stdout.read() == ""  # the child has closed it, too
    assert time.monotonic() - begin < 30
