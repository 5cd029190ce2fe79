"""bin/sweep: trains and attacks many networks and collects the results. It can be resumed."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from irp_jax import config as configs
from irp_jax import files
from irp_jax.cli.common import main
from irp_jax.cli.flags import parse, take_flag
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.report.console.terminal import plain_console, show_results
from irp_jax.sweep.claims import STALE_S
from irp_jax.sweep.one_run import Wanted, attack_flags, collected, is_complete
from irp_jax.sweep.runs import failed_runs, train_all
from irp_jax.sweep.slurm import launch, read_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train and attack one network for every combination of the lists, and collect the results.

    Lists are separated by commas: --seeds=0,1,2. Give the same command again to resume. A run whose
    results are already collected is not repeated. The same command at the same time, here or on
    machines that share the folder of --results, shares the runs: each is done by one of them.
    """

    config: str = "digits"
    """Config of all runs: a name in configs/, or PATH.py. The file may define a list `configs`."""
    models: str | None = None
    """List of models. Default: the model of the config."""
    budgets: str | None = None
    """List of budgets. Default: the budget of the config."""
    seeds: str | None = None
    """List of seeds. Default: the seed of the config."""
    granularities: str | None = None
    """List of granularities: channel, weight. Default: the granularity of the config."""
    methods: str | None = None
    """List of methods: lagrangian, hinge, width, magnitude, admm. Default: the method of the
    config."""
    epochs: int | None = None
    """Epochs of each run. Default: the epochs of the config."""
    attacks: str | None = None
    """List of attacks on each trained network besides PGD-10: autoattack, pgd-50-10 (50 steps, 10
    restarts), or another attack of bin/evaluate."""
    images: int | None = None
    """Use only this many test images for --attacks, the first of the test set."""
    data_dir: str | None = None
    """Folder of the data set. Default: the folder of the config."""
    workdir: str = "runs"
    """Folder of all runs. Each run makes its own folder in it."""
    results: str | None = None
    """Also collect the results in this folder, one JSON file per run."""
    jobs: int = 0
    """Runs at a time. On a CPU each run has its own cores. Default: on a CPU the number of cores or
    of runs, whichever is smaller; otherwise 1."""
    shard: str | None = None
    """I/N: do only part I of N of the runs, for machines that share no folder."""
    stale: float = STALE_S
    """Seconds without a sign of life after which others take over the runs of this process."""
    launcher: str | None = None
    """Do each run as a job: slurm (an array job, through submitit), local (to try it out)."""
    slurm: str | None = None
    """Settings of the jobs, for instance partition=gpu,gpus=1,time=120 (time in minutes)."""


def sweep(arguments: list[str]) -> None:
    """Does the runs and attacks that are missing, then prints the table of all results."""
    options = parse(Options, arguments, "bin/sweep")
    names = [name.strip() for name in (options.attacks or "").split(",")]
    _check(options)
    part, parts = _shard(options.shard)
    runs = list({run.workdir: run for run in runs_of(options)}.values())
    for folder in (options.workdir, options.results):
        if folder is not None:
            files.make_folder(Path(folder))
    results = None if options.results is None else Path(options.results)
    wanted = Wanted(attack_flags(filter(None, names)), options.images, results)
    console = plain_console()
    if options.launcher is not None:
        missing = [
            number
            for number, run in enumerate(runs, start=1)
            if not is_complete(collected(run, wanted), wanted)
        ]
        _launch(options, arguments, missing, len(runs), console)
        return
    runs = runs[part - 1 :: parts]
    if not runs:
        console.print(f"no run is in part {options.shard}")
        return
    done, failed = train_all(
        runs, wanted, Path(options.results or options.workdir), console,
        jobs=options.jobs, stale=options.stale,
    )  # fmt: skip
    if done:
        show_results(console, done)
    if failed:
        raise failed_runs(runs, failed)


def _check(options: Options) -> None:
    """Raises an error for flags that are wrong by themselves or do not go together."""
    if options.images is not None and options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    if options.images is not None and not options.attacks:
        raise UserError("--images is for --attacks: give some, for instance --attacks=autoattack")
    if options.jobs < 0:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}")
    if not 1 <= options.stale < math.inf:
        raise UserError(f"--stale must be at least 1 second, got {options.stale:g}")
    read_settings(options.launcher, options.slurm)
    if options.launcher is not None and (options.shard or options.jobs):
        flag = "--shard" if options.shard else "--jobs"
        raise UserError(f"{flag} is not for --launcher: there each run is a job of its own")


def _shard(text: str | None) -> tuple[int, int]:
    """Returns the part and the number of parts of --shard=I/N; (1, 1) for None."""
    found = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard must be I/N with I from 1 to N, for instance 1/4, got {text!r}")
    return part, parts


def _launch(
    options: Options, arguments: list[str], missing: list[int], count: int, console: Console
) -> None:
    """Starts a job for each missing run. It does this command with --shard."""
    for flag in ("--launcher", "--slurm"):
        _, arguments = take_flag(arguments, flag)
    shards = [[*arguments, "--jobs=1", f"--shard={number}/{count}"] for number in missing]
    launch(str(options.launcher), options.slurm, shards, Path(options.workdir) / "jobs", console)


def runs_of(options: Options) -> Iterator[Config]:
    """Yields a checked config for each config of the file and each combination of the lists."""

    def split(text: str | None, fallback: Any) -> list[str]:
        return [part.strip() for part in text.split(",")] if text else [str(fallback)]

    for base in configs.load_all(options.config):
        lists = {
            "method": split(options.methods, base.method),
            "granularity": split(options.granularities, base.granularity),
            "model": split(options.models, base.model),
            "budget": split(options.budgets, base.budget),
            "seed": split(options.seeds, base.seed),
        }
        for words in itertools.product(*lists.values()):
            chosen: dict[str, Any] = dict(zip(lists, words, strict=True))
            if not chosen["seed"].isdecimal():
                raise UserError(f"--seeds takes whole numbers from 0, got {chosen['seed']!r}")
            chosen["seed"] = int(chosen["seed"])
            run = dataclasses.replace(
                base, **chosen, data_dir=options.data_dir or base.data_dir,
                epochs=base.epochs if options.epochs is None else options.epochs,
                channels=base.channels if chosen["method"] == "width" else "",
            )  # fmt: skip
            configs.check(run)
            folder = Path(options.workdir) / configs.run_name(run)
            yield dataclasses.replace(run, workdir=str(folder))


if __name__ == "__main__":
    main(sweep)
