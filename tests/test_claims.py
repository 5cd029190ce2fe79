"""Claims: processes that share a folder divide names, and take over those of dead processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from irp_jax.sweep.claims import Claims

ROOT = Path(__file__).parent.parent

# Does the names of a list, with a file for each that is done, until all are. Each piece of work is
# one line in `log`.
WORKER = """
import os, sys, time
from pathlib import Path
from irp_jax.sweep.claims import Claims

names, seconds = sys.argv[1].split(","), float(sys.argv[2])
with Claims(Path("."), stale_s=float(sys.argv[3])) as claims:
    while any(not Path(name).exists() for name in names):
        for name in names:
            claim = None if Path(name).exists() else claims.take(name)
            if claim is None:
                continue
            if not Path(name).exists():
                with open("log", "a") as log:
                    log.write(f"{name} {os.getpid()}\\n")
                time.sleep(seconds)
                Path(name).touch()
            claims.finish(claim)
        time.sleep(0.02)
"""


def start(folder, names, seconds, stale_s):
    command = [sys.executable, "-P", "-c", WORKER, ",".join(names), str(seconds), str(stale_s)]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)})


def logged(folder):
    path = folder / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(line.split()) for line in lines]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def move_elsewhere(folder):
    """Makes the owner of the only claim one of another machine; returns the claim's file."""
    (path,) = folder.glob("*.claim")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"place": "another machine"}))
    return path


def test_four_processes_do_each_of_many_names_once(tmp_path):
    names = [f"name{number}" for number in range(100)]
    workers = [start(tmp_path, names, 0.002, 60) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    done = logged(tmp_path)
    assert sorted(name for name, _ in done) == sorted(names)
    assert len({process for _, process in done}) > 1
    assert {path.name for path in tmp_path.iterdir()} == {*names, "log"}


def test_what_a_killed_process_of_this_machine_did_is_free_at_once(tmp_path):
    first = start(tmp_path, ["a"], 1000, 1000)
    wait_for(lambda: logged(tmp_path))
    with Claims(tmp_path) as claims:
        assert claims.take("a") is None
        first.kill()
        first.wait()
        claim = claims.take("a")
        assert claim is not None
        assert claims.take("a") is None  # not even the same process has it twice
        claims.finish(claim)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_the_owner_on_another_machine_is_dead_once_it_gives_no_sign_of_life(tmp_path):
    owner = start(tmp_path, ["a"], 1000, 1)
    wait_for(lambda: logged(tmp_path))
    move_elsewhere(tmp_path)
    try:
        with Claims(tmp_path) as claims:
            end = time.monotonic() + 2.5
            while time.monotonic() < end:  # it lives, and touches its file
                assert claims.take("a") is None
                time.sleep(0.1)
            owner.send_signal(signal.SIGSTOP)
            begin = time.monotonic()
            wait_for(lambda: claims.take("a") is not None)
            assert time.monotonic() - begin > 0.7
    finally:
        owner.kill()
        owner.wait()


def test_the_clocks_of_the_machines_need_not_agree(tmp_path):
    owner = start(tmp_path, ["a"], 1000, 1000)
    wait_for(lambda: logged(tmp_path))
    path = move_elsewhere(tmp_path)
    try:
        with Claims(tmp_path, stale_s=1) as claims:
            for clock in (1, time.time() + 10**6):
                os.utime(path, (clock, clock))
                assert claims.take("a") is None
    finally:
        owner.kill()
        owner.wait()


def test_a_suspended_owner_learns_that_it_was_replaced(tmp_path):
    told = []
    with Claims(tmp_path, stale_s=1) as claims:
        claim = claims.take("a", on_lost=lambda: told.append("a"))
        kept = claims.take("b", on_lost=lambda: told.append("b"))
        (tmp_path / ".a.2.claim").write_text("{}")  # as the process that takes over does
        assert not claims.holds(claim) and claims.holds(kept)
        wait_for(lambda: told)
        assert claim.lost.is_set() and told == ["a"]
        claims.give_back(claim)
        assert {path.name for path in tmp_path.glob(".a.*")} == {".a.1.claim", ".a.2.claim"}
        claims.finish(kept)


def test_what_is_given_back_is_free_while_its_process_lives(tmp_path):
    with Claims(tmp_path) as claims:
        claims.give_back(claims.take("a"))
        claims.take("b")  # the end of the block gives it back
    with Claims(tmp_path) as claims:
        for name in ("a", "b"):
            claim = claims.take(name)
            assert claim is not None
            claims.finish(claim)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", '{"pla', "1"])
def test_a_claim_that_is_not_written_out_is_respected_until_it_is_stale(tmp_path, content):
    (tmp_path / ".a.1.claim").write_text(content)
    with Claims(tmp_path, stale_s=0.5) as claims:
        assert claims.take("a") is None
        wait_for(lambda: claims.take("a") is not None)
