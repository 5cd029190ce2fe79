"""A command ends without a message when the reader of its output is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(module, *arguments, **streams):
    """Runs a command whose output goes to a pipe that nobody reads. Returns the process."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as output:
        return subprocess.run(
            [sys.executable, "-P", "-m", module, *arguments], stdout=output, text=True,
            timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)},
            **({"stderr": subprocess.PIPE} | streams),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("", ["--help"]),  # written when Python exits
        (".train", ["--help"]),  # printed by the flag parser
        (".report", [f"{ROOT}/results/quickstart"]),  # printed by rich
    ],
)
def test_output_that_nobody_reads(name, arguments):
    done = run(f"irp_jax.cli{name}", *arguments)
    assert (done.stderr, done.returncode) == ("", 141)


def test_an_error_that_nobody_reads():
    assert run("irp_jax.cli", "nothing", stderr=subprocess.STDOUT).returncode == 141


def test_a_sweep_ends_before_its_runs(tmp_path):
    flags = ["--config=digits", "--seeds=0,1", f"--workdir={tmp_path}", "--jobs=2"]
    done = run("irp_jax.cli.sweep", *flags)
    assert (done.stderr, done.returncode) == ("", 141)
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "irp_jax.cli", "--help"], stdout=full, text=True,
            stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
