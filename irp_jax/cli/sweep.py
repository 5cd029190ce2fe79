"""bin/sweep: the same run over budgets, seeds, regularities and methods."""

import dataclasses
import itertools
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from irp_jax import config as configs
from irp_jax import files, parallel
from irp_jax.cli.run import main, parse
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.report.tables import summary
from irp_jax.report.terminal import plain_console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Every combination of the lists, as runs of bin/train; run again to resume.

    A list is written with commas: --seeds=0,1,2.
    """

    config: str = "digits"
    """Config of all runs: a name in configs/ or PATH.py."""
    models: str | None = None
    """Models. Default: the config's."""
    budgets: str | None = None
    """Budgets. Default: the config's."""
    seeds: str = "0"
    """Seeds."""
    regularities: str | None = None
    """channel, weight. Default: the config's."""
    methods: str | None = None
    """priced, paper, width, magnitude, admm. Default: the config's."""
    epochs: int | None = None
    """Epochs of each run. Default: the config's."""
    data_dir: str | None = None
    """Where the data set lies."""
    workdir: str = "runs"
    """Each run gets a folder in it."""
    results: str | None = None
    """Also collect the runs' results.json here, one file a run."""
    jobs: int = 0
    """Runs at a time, each on cores of its own. Default: one a core on a CPU, else one."""


def sweep(arguments: list[str]) -> None:
    """Runs what is missing, then prints the table of all."""
    options = parse(Options, arguments, "bin/sweep")
    base = configs.load(options.config)
    base = dataclasses.replace(
        base,
        epochs=base.epochs if options.epochs is None else options.epochs,
        data_dir=options.data_dir,
    )
    runs = list(_runs(base, options))
    console = plain_console()
    jobs = options.jobs or (1 if parallel.has_accelerator() else parallel.cores())
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}")
    shares: Queue[set[int]] = Queue()
    cores = parallel.core_numbers()
    for job in range(jobs):
        shares.put(set(cores[job::jobs] or cores))
    began, failed = time.monotonic(), []

    def one(numbered: tuple[int, Config]) -> None:
        number, run = numbered
        share = shares.get()
        try:
            status = _train(run, share)
        finally:
            shares.put(share)
        if status:
            failed.append(str(run.workdir))
        elapsed = time.monotonic() - began
        word = "failed" if status else "done"
        console.print(f"[{number}/{len(runs)}] {run.workdir} {word}, {elapsed:.0f} s", markup=False)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, enumerate(runs, start=1)))
    rows = []
    for run in runs:
        if str(run.workdir) in failed:
            continue
        found = files.read_json(Path(str(run.workdir)) / "results.json")
        if found is not None:
            rows.append(found)
            if options.results is not None:
                target = Path(options.results) / f"{Path(str(run.workdir)).name}.json"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(str(run.workdir)) / "results.json", target)
    console.print(summary(rows))
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed, see log.txt in {failed[0]}")


def _runs(base: Config, options: Options) -> Iterator[Config]:
    def split(text: str | None, fallback: str) -> list[str]:
        return [part.strip() for part in text.split(",")] if text else [fallback]

    for method, regularity, model, budget, seed in itertools.product(
        split(options.methods, base.method),
        split(options.regularities, base.regularity),
        split(options.models, base.model),
        split(options.budgets, base.budget),
        split(options.seeds, "0"),
    ):
        if not seed.isdigit():
            raise UserError(f"--seeds takes whole numbers, got {seed!r}")
        run = dataclasses.replace(
            base, method=method, regularity=regularity, model=model, budget=budget, seed=int(seed)
        )
        configs.check(run)
        yield dataclasses.replace(run, workdir=str(Path(options.workdir) / configs.run_name(run)))


def _train(run: Config, cores: set[int]) -> int:
    """One run in a process of its own, on these cores; what it prints goes to log.txt."""
    folder = Path(str(run.workdir))
    folder.mkdir(parents=True, exist_ok=True)
    flags = configs.flags(run, configs.suited(run.dataset))
    command = [sys.executable, "-m", "irp_jax.cli.train", *flags]
    with open(folder / "log.txt", "a") as log:
        log.write("$ " + shlex.join(["bin/train", *flags]) + "\n")
        log.flush()
        return subprocess.call(
            command, stdout=log, stderr=log, preexec_fn=lambda: parallel.stay_on(cores)
        )


if __name__ == "__main__":
    main(sweep)
