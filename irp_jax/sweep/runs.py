"""Trains and attacks many networks, several at a time. Other processes may share the work."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from irp_jax import machine
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.sweep.child_processes import Commands
from irp_jax.sweep.claims import STALE_S, Claims
from irp_jax.sweep.dispatch import Dispatch
from irp_jax.sweep.one_run import Wanted, collected


def train_all(
    runs: Sequence[Config],
    wanted: Wanted,
    folder: Path,
    console: Console,
    *,
    jobs: int = 0,
    stale: float = STALE_S,
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Does the runs and attacks that are missing, each in a process of its own.

    Args:
        runs: the settings. Each has a workdir of its own.
        wanted: what each needs besides training.
        folder: where processes that share the runs claim them.
        console: where the progress is printed.
        jobs: runs at a time; 0 for the number of cores on a CPU, else 1.
        stale: seconds without a sign of life after which other processes take over the runs of this
            one.

    Returns:
        The results of the runs that are done; number of a run, from 1 -> why it failed.

    Raises:
        UserError: results that were collected before are damaged, or of other runs.
    """
    for run in runs:
        collected(run, wanted)  # a wrong file is reported now
    commands, claims = Commands(), Claims(folder, stale)
    dispatch = Dispatch(list(runs), wanted, claims, commands, console)
    shares = _shares_of_jobs(jobs, len(runs))
    with commands.stopped_together(), claims:
        dispatch.work(shares)
    return [dispatch.found[number] for number in sorted(dispatch.found)], dispatch.failed


def failed_runs(runs: Sequence[Config], failed: Mapping[int, str]) -> UserError:
    """Returns the error for runs that failed: see `train_all`."""
    first = min(failed)
    return UserError(
        f"{len(failed)} of {len(runs)} runs failed; {runs[first - 1].workdir} (see its log.txt): "
        f"{failed[first]}"
    )


def _shares_of_jobs(jobs: int, runs: int) -> list[set[int]]:
    """Returns the CPU cores of each of the runs that are done at a time.

    Args:
        jobs: how many at a time; 0 for as many as are sensible.
        runs: how many there are.
    """
    on_cpu = not machine.has_accelerator()
    jobs = jobs or (min(machine.cores(), runs) if on_cpu else 1)
    # `cores()` respects a CPU quota, which may allow fewer cores than there are.
    cores = machine.core_numbers()[: machine.cores()]
    if on_cpu:
        return share_cores(cores, jobs)
    if jobs > 1:  # otherwise the first run preallocates most of the device's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return [set(cores)] * jobs


def share_cores(cores: list[int], jobs: int) -> list[set[int]]:
    """Returns the cores of each job.

    All jobs have the same number of cores, because it changes the results of a run slightly.
    """
    each = max(1, len(cores) // jobs)
    firsts = [job * each % len(cores) for job in range(jobs)]
    return [set(cores[first : first + each]) for first in firsts]
