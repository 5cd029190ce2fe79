"""Jobs of a cluster: submitit queues each run of a sweep with Slurm, as one array job.

submitit stores what a job shall call as a pickle in the folder of the jobs. Here this is a list of
flags.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from irp_jax.errors import UserError, extra, unknown
from irp_jax.sweep.parent import child_environment

LAUNCHERS = ("local", "slurm")

SETTINGS: dict[str, tuple[str, type]] = {
    "account": ("slurm_account", str),
    "at_once": ("slurm_array_parallelism", int),
    "constraint": ("slurm_constraint", str),
    "cpus": ("cpus_per_task", int),
    "gpus": ("gpus_per_node", int),
    "mem_gb": ("mem_gb", int),
    "partition": ("slurm_partition", str),
    "qos": ("slurm_qos", str),
    "time": ("timeout_min", int),
}
"""Setting of --slurm -> submitit's name for it, and its type."""

_RESTARTS = 20
"""How often a job that reached its time is queued again."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What one job does: bin/sweep with these flags, to its end."""

    flags: tuple[str, ...]

    def __call__(self) -> None:
        """Does the runs.

        Raises:
            RuntimeError: the command failed. Its error is in the job's log.
        """
        # In a session of its own, because Slurm signals the processes of the job's session.
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "irp_jax.cli.sweep", *self.flags],
            env=child_environment(), start_new_session=True,
        ) as child:  # fmt: skip
            try:
                failed = child.wait()
            except BaseException:  # the job is preempted: the sweep gives its claim back
                child.terminate()
                raise
        if failed:
            raise RuntimeError(f"bin/sweep ended with code {failed}")

    def checkpoint(self) -> Any:
        """Returns what is queued again when the job is preempted or its time is over: the same.

        The run resumes from its last checkpoint.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch(
    launcher: str, settings: str | None, shards: list[list[str]], folder: Path, console: Console
) -> None:
    """Starts one job for each list of flags of bin/sweep.

    Jobs of Slurm are queued, and this returns. Local ones run at the same time, on this machine,
    until the last has ended.

    Args:
        launcher: one of `LAUNCHERS`.
        settings: of the jobs, as in key=value,key=value; keys are those of `SETTINGS`.
        shards: the flags of each job.
        folder: where submitit writes the jobs and their output; it is made.
        console: where the names of the jobs are printed.

    Raises:
        UserError: as `read_settings`; Slurm is absent or refuses the jobs; or a local job failed.
    """
    chosen = {"timeout_min": 240} | read_settings(launcher, settings)
    with extra("slurm"):
        import submitit
    if not shards:
        console.print("all runs are done")
        return
    failure = submitit.core.utils.FailedJobError
    try:
        limit = {"slurm_max_num_timeout": _RESTARTS}
        executor = submitit.AutoExecutor(folder, cluster=launcher, **limit)
        executor.update_parameters(name="irp_jax", **chosen)
        with executor.batch():
            jobs = [executor.submit(Job(tuple(flags))) for flags in shards]
    except (RuntimeError, OSError, failure) as error:
        raise UserError(f"{launcher} does not take the jobs: {error}") from error
    console.print(f"{len(jobs)} jobs, first {jobs[0].job_id}; their output is in {folder}")
    if launcher == "slurm":
        return
    try:
        failed = [job for job in jobs if job.exception() is not None]
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        raise
    if failed:
        log = failed[0].paths.stderr
        raise UserError(f"{len(failed)} of {len(jobs)} jobs failed; see {log}")
    console.print("all jobs are done")


def read_settings(launcher: str | None, text: str | None) -> dict[str, Any]:
    """Returns settings as submitit takes them, for instance {"slurm_partition": "gpu"}.

    Args:
        launcher: one of `LAUNCHERS`, or None for a sweep without jobs.
        text: key=value,key=value with keys of `SETTINGS`; none if None.

    Raises:
        UserError: the launcher or a key is unknown, a value is missing or no number, or there are
            settings without a launcher.
    """
    if launcher is not None and launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, LAUNCHERS)
    if launcher is None and text is not None:
        raise UserError(f"--slurm={text} is for jobs: give --launcher=slurm too")
    settings: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in SETTINGS:
            raise unknown("setting of --slurm", key, SETTINGS)
        name, kind = SETTINGS[key]
        if not value or (kind is int and not (value.isdecimal() and int(value))):
            needed = "a whole number from 1" if kind is int else "a value"
            raise UserError(f"--slurm: {key} needs {needed}, as in {key}=1, got {value!r}")
        settings[name] = kind(value)
    return settings
