"""Kills a small run at random moments, resumes it, and compares it with an uninterrupted one.

    python -m benchmarks.faults --cases=30 --out=results/faults.json

Each case is a run in a fresh folder. SIGKILL ends it once or twice, then the same command finishes
it. The moments are uniform over the time of a run that nothing interrupts, from the start of the
process to its end; if a run ends earlier, the case begins anew. In every third case the first kill
waits for that moment or later, until a checkpoint is half written. Every second case trains in
8-bit integers from the third epoch on, when the masks are frozen. All figures except times must be
the same, and so must the digest of the network.
"""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from irp_jax import files, machine
from irp_jax.cli.common import main, publishable
from irp_jax.cli.flags import parse
from irp_jax.cli.train import train
from irp_jax.errors import UserError

NET = '''"""A network of two layers, which compiles fast."""

import flax.linen as nn


class Net(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, images, train):
        for name in ("first", "second"):
            images = nn.Conv(24, (3, 3), use_bias=False, name=name)(images)
            images = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(images))
        return nn.Dense(self.classes, name="classifier")(images.mean((1, 2)))
'''

FLAGS = (
    "--dataset=digits", "--budget=0.3", "--epochs=4", "--prune-stop=0.5", "--train-images=256",
    "--batch-size=4", "--epsilon-warmup=0.6", "--checkpoint-every=0",
)  # fmt: skip

FRESH = multiprocessing.get_context("forkserver")
"""Makes processes that have imported what a run needs and have not started JAX. Imports would take
half of the time of so small a run."""
FRESH.set_forkserver_preload(["irp_jax.cli.train", "orbax.checkpoint", "sklearn.datasets"])

TIMES = ("seconds", "images_per_s")
"""Entries of a line of metrics.jsonl that differ from run to run."""

KINDS = {"float32": (), "int8": ("--quantize=int8", "--quantize-start=0.5")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Kill small runs at random moments, resume them and compare the results."""

    cases: int = 30
    """How many runs are killed."""
    minutes: float = 600.0
    """No case begins after this time."""
    seed: int = 0
    """Of the moments."""
    out: str = "results/faults.json"
    """Where the outcome goes."""


def bench(arguments: list[str]) -> None:
    """Runs all cases, prints a table, and writes it.

    Raises:
        UserError: a run failed, or a resumed run gave another result.
    """
    options, began = parse(Options, arguments, "python -m benchmarks.faults"), time.monotonic()
    if options.cases < 1:
        raise UserError(f"--cases must be at least 1, got {options.cases}: try 30")
    files.check_place(Path(options.out))
    commit, draws = files.commit(), random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="irp_jax-faults-") as temporary:
        net = Path(temporary, "net.py")
        net.write_text(NET)
        whole = {kind: _uninterrupted(kind, net) for kind in KINDS}
        while (number := len(rows)) < options.cases:
            if time.monotonic() - began > 60 * options.minutes:
                break
            kind = tuple(KINDS)[number % len(KINDS)]
            seconds, expected = whole[kind]
            row = None
            while row is None:  # until no run ends before it is killed
                moments = [draws.uniform(0, seconds) for _ in range(1 + number // 2 % 2)]
                row = _case(kind, net, Path(temporary, "run"), moments, number % 3 == 2)
            row["identical"] = row.pop("outcome") == expected
            rows.append(row)
            print(json.dumps(row), flush=True)
    _show(rows)
    same = sum(row["identical"] for row in rows)
    report = {
        "cases": len(rows), "kills": sum(len(row["kills"]) for row in rows), "identical": same,
        "seconds_uninterrupted": {kind: round(seconds, 1) for kind, (seconds, _) in whole.items()},
        "flags": {kind: [*FLAGS, *more] for kind, more in KINDS.items()},
        "runs": rows, "environment": machine.describe(), "commit": commit,
        "command": publishable("python -m benchmarks.faults", arguments),
    }  # fmt: skip
    files.write_json(Path(options.out), report)
    if same < len(rows):
        raise UserError(
            f"{len(rows) - same} of {len(rows)} runs gave another result: see the table"
        )


def _command(flags: list[str], log: Path) -> None:
    """Runs bin/train with these flags in this process. All output goes to the log."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["bin/train", *flags]
    main(train)


def _start(kind: str, net: Path, workdir: Path) -> ForkServerProcess:
    flags = [f"--model={net}:Net", *FLAGS, *KINDS[kind], f"--workdir={workdir}"]
    process = FRESH.Process(target=_command, args=(flags, _log(workdir)))
    process.start()
    return process


def _log(workdir: Path) -> Path:
    return workdir.with_suffix(".txt")


def _finish(kind: str, net: Path, workdir: Path) -> dict[str, Any]:
    """Runs the command to its end. Returns its figures."""
    process = _start(kind, net, workdir)
    process.join()
    _check(process, workdir, expected=0)
    return _outcome(json.loads((workdir / "results.json").read_text()))


def _check(process: ForkServerProcess, workdir: Path, expected: int) -> None:
    if process.exitcode != expected:
        said = _log(workdir).read_text()
        raise UserError(f"a run ended with code {process.exitcode}: {said[-300:]}")


def _outcome(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all of a run's results except times and facts about the machine."""
    left_out = ("wall_time_s", "environment", "command", "commit", "history", *TIMES)
    history = [{k: v for k, v in row.items() if k not in TIMES} for row in results["history"]]
    return {k: v for k, v in results.items() if k not in left_out} | {"history": history}


def _uninterrupted(kind: str, net: Path) -> tuple[float, dict[str, Any]]:
    """Returns the time of a run whose programs are compiled already, and its figures."""
    outcomes, seconds = [], 0.0
    for again in ("first", "second"):
        began = time.monotonic()
        outcomes.append(_finish(kind, net, net.parent / f"{kind}-{again}"))
        seconds = time.monotonic() - began
    if outcomes[0] != outcomes[1]:
        raise UserError("two runs without a fault differ: nothing can be compared on this machine")
    return seconds, outcomes[0]


def _case(
    kind: str, net: Path, workdir: Path, moments: list[float], in_a_write: bool
) -> dict[str, Any] | None:
    """Kills a run at some moments, then finishes it.

    Returns:
        What happened; None if the run ended before it was killed.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    _log(workdir).unlink(missing_ok=True)
    kills: list[dict[str, Any]] = []
    for moment in moments:
        process = _start(kind, net, workdir)
        process.join(moment)
        if in_a_write and not kills:
            _await_write(process, workdir)
        process.kill()
        process.join()
        if process.exitcode == 0:
            return None
        _check(process, workdir, expected=-signal.SIGKILL)
        kills.append({"after_s": round(moment, 2), **_state(workdir)})
    return {"kind": kind, "kills": kills, "outcome": _finish(kind, net, workdir)}


def _await_write(process: ForkServerProcess, workdir: Path) -> None:
    """Waits until a checkpoint is half written, or the process ends."""
    while process.is_alive() and not _unfinished(workdir):
        time.sleep(0.0005)


def _unfinished(workdir: Path) -> list[str]:
    return [path.name for path in workdir.glob("*/*.orbax-checkpoint-tmp*")]


def _state(workdir: Path) -> dict[str, Any]:
    """Returns where a run was when it was killed."""
    saved = [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal()]
    said = _log(workdir).read_text().replace(f"{workdir.parent}/", "")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    return {
        "saved_epoch": max(saved, default=0),
        "writing": bool(_unfinished(workdir)),
        "last_line": lines[-1][:60] if lines else "",
    }


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("kind", "killed after", "saved epoch", "in a write", "result")
    for row in rows:
        kills = row["kills"]
        table.add_row(
            row["kind"],
            ", ".join(f"{kill['after_s']:.1f} s" for kill in kills),
            ", ".join(str(kill["saved_epoch"]) for kill in kills),
            ", ".join("yes" if kill["writing"] else "no" for kill in kills),
            "identical" if row["identical"] else "DIFFERS",
        )
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main(bench)
