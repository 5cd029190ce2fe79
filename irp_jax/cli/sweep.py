"""bin/sweep: trains and attacks many networks and collects the results. It can be resumed."""

import dataclasses
import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, cast

from irp_jax import config as configs
from irp_jax import files, parallel
from irp_jax.attacks import AttackName, AttackSpec
from irp_jax.cli.commands import Commands
from irp_jax.cli.run import main, parse
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.report.terminal import plain_console, show_results
from irp_jax.results import check_version

ATTACK_FACTS = (
    "command", "attack", "accuracy", "wall_time_s", "warnings", "environment", "commit",
)  # fmt: skip
"""The facts that are collected of each attack."""

Call = Callable[[str, list[str]], None]
"""Runs a command: (name, flags)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train and attack one network for every combination of the lists, and collect the results.

    Lists are separated by commas: --seeds=0,1,2. Give the same command again to resume. A run whose
    results are already collected is not repeated.
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
    """List of methods: lagrangian, paper, width, magnitude, admm. Default: the method of the
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


def sweep(arguments: list[str]) -> None:
    """Does the runs and attacks that are missing, then prints the table of all results."""
    options = parse(Options, arguments, "bin/sweep")
    names = [name.strip() for name in (options.attacks or "").split(",")]
    wanted = {name: _flags(name) for name in names if name}
    if options.images is not None and options.images < 1:
        raise UserError(f"--images must be at least 1, got {options.images}")
    if options.images is not None and not wanted:
        raise UserError("--images is for --attacks: give some, for instance --attacks=autoattack")
    runs = list({run.workdir: run for run in _runs(options)}.values())
    console = plain_console()
    on_cpu = not parallel.has_accelerator()
    jobs = options.jobs or (min(parallel.cores(), len(runs)) if on_cpu else 1)
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}")
    if not on_cpu and jobs > 1:  # otherwise the first run preallocates most of the device's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    for folder in (options.workdir, options.results):
        if folder is not None:
            files.make_folder(Path(folder))
    before = {run.workdir: _collected(run, options) for run in runs}
    commands = Commands()
    shares: Queue[set[int]] = Queue()
    # `cores()` respects a CPU quota, which may allow fewer cores than there are.
    cores = parallel.core_numbers()[: parallel.cores()]
    for share in _shares(cores, jobs) if on_cpu else [set(cores)] * jobs:
        shares.put(share)
    began, failed = time.monotonic(), {}

    def one(numbered: tuple[int, Config]) -> dict[str, Any] | None:
        number, run = numbered
        found, word = before[run.workdir], "was done"
        if found is None or _missing(found, wanted, options):
            share, log = shares.get(), configs.workdir(run) / "log.txt"
            console.print(
                f"[{number}/{len(runs)}] {run.workdir} begins, see its log.txt", markup=False
            )
            try:
                call = functools.partial(commands.run, log=log, cores=share)
                found = _run(run, found, wanted, options, call)
                word = "done"
            except (UserError, OSError) as error:  # the other runs continue
                found, word, failed[run.workdir] = None, "failed", str(error)
            finally:
                shares.put(share)
        if commands.stopping.is_set():
            return None
        elapsed = time.monotonic() - began
        console.print(f"[{number}/{len(runs)}] {run.workdir} {word}, {elapsed:.0f} s", markup=False)
        return found

    with commands.stopped_together(), ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(one, enumerate(runs, start=1)))
    done = [results for results in found if results is not None]
    if done:
        show_results(console, done)
    if failed:
        first = next(run.workdir for run in runs if run.workdir in failed)
        count = f"{len(failed)} of {len(runs)} runs failed"
        raise UserError(f"{count}; {first} (see its log.txt): {failed[first]}")


def _shares(cores: list[int], jobs: int) -> list[set[int]]:
    """Returns the cores of each job.

    All jobs have the same number of cores, because it changes the results of a run slightly.
    """
    each = max(1, len(cores) // jobs)
    firsts = [job * each % len(cores) for job in range(jobs)]
    return [set(cores[first : first + each]) for first in firsts]


def _flags(attack: str) -> list[str]:
    """Returns the flags of bin/evaluate for an attack of --attacks: pgd-50-10, autoattack."""
    if attack in ("pgd", "pgd-last", "none"):
        raise UserError(
            "natural accuracy and PGD-10, over all iterates and at the last, are always measured: "
            "give steps and restarts, as in --attacks=pgd-50-10, or another attack"
        )
    parts = re.fullmatch(r"(pgd|pgd-margin)-(\d+)(?:-(\d+))?", attack)
    if parts is None:
        AttackSpec(name=cast(AttackName, attack))  # checks the name
        return [f"--attack={attack}"]
    name, steps, restarts = parts[1], int(parts[2]), int(parts[3] or 1)
    AttackSpec(name=cast(AttackName, name), steps=steps, restarts=restarts)
    return [f"--attack={name}", f"--steps={steps}", f"--restarts={restarts}"]


def _runs(options: Options) -> Iterator[Config]:
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


def _run(
    run: Config,
    before: dict[str, Any] | None,
    wanted: dict[str, list[str]],
    options: Options,
    call: Call,
) -> dict[str, Any]:
    """Trains and attacks one network, except for what is done already, and collects the results.

    Returns:
        The results of the run, with those of every attack under `accuracy` and `attacks`.

    Raises:
        UserError: training or an attack failed.
    """
    call("train", configs.flags(run, configs.suited(run.dataset)))
    results = files.read_json(_finished(run)) | {"attacks": {}}
    if before is not None and _same_network(before, results):
        results |= {"attacks": before.get("attacks", {}), "accuracy": before["accuracy"]}
    for name, flags in _missing(results, wanted, options).items():
        _attack(run, name, flags, options, call)
        found = files.read_json(_attacked(run, name, options))
        if not _same_network(found, results):
            raise UserError(
                f"the last checkpoint in {run.workdir} cannot be read, so {name} attacked the one "
                f"before it: remove the folder to train anew"
            )
        results["accuracy"][name] = found["accuracy"][flags[0].partition("=")[2]]
        if "pgd-last" in found["accuracy"]:
            results["accuracy"][f"{name}-last"] = found["accuracy"]["pgd-last"]
        results["attacks"][name] = {key: found[key] for key in ATTACK_FACTS}
    if options.results is not None:
        files.write_json(_target(run, options.results), results)
    return results


def _same_network(one: dict[str, Any], trained: dict[str, Any]) -> bool:
    return one.get("network_sha256", "") == trained.get("network_sha256")


def _attack(run: Config, name: str, flags: list[str], options: Options, call: Call) -> None:
    """Attacks the trained network and leaves the results in its folder."""
    target = _attacked(run, name, options)
    if target.exists() and _same_network(files.read_json(target), files.read_json(_finished(run))):
        return
    places = [f"--checkpoint={run.workdir}", f"--out={target}"]
    places += [f"--data-dir={run.data_dir}"] if run.data_dir is not None else []
    places += [f"--split={run.evaluate_on}"] if run.evaluate_on != "test" else []
    places += [f"--images={options.images}"] if options.images is not None else []
    call("evaluate", [*places, *flags])


def _finished(run: Config) -> Path:
    return configs.workdir(run) / "results.json"


def _attacked(run: Config, name: str, options: Options) -> Path:
    count = "" if options.images is None else f"-{options.images}"
    return configs.workdir(run) / f"{name}{count}.json"


def _collected(run: Config, options: Options) -> dict[str, Any] | None:
    """Returns what an earlier sweep collected of the same run, or None."""
    if options.results is None:
        return None
    target = _target(run, options.results)
    found = files.read_json(target)
    if found is None:
        return None
    same = files.as_json(configs.identity(run))
    known = isinstance(found, dict) and {"accuracy", "attack", "identity", "wall_time_s"} <= set(
        found
    )
    stored = found["identity"] if known else {}
    if {k: v for k, v in stored.items() if k not in configs.BY_RUN} != same:
        raise UserError(
            f"{target} does not hold results of this run: move it away, or give another --results"
        )
    check_version(found, target, "--results")
    return found


def _missing(
    found: dict[str, Any], wanted: dict[str, list[str]], options: Options
) -> dict[str, list[str]]:
    """Returns the attacks that the results lack, or have for fewer images than requested."""
    whole = found["attack"]["images"]
    enough = min(options.images or whole, whole)
    attacks = found.get("attacks", {})
    counts = {name: attack["attack"]["images"] for name, attack in attacks.items()}
    return {name: flags for name, flags in wanted.items() if counts.get(name, 0) < enough}


def _target(run: Config, folder: str) -> Path:
    return Path(folder) / f"{configs.workdir(run).name}.json"


if __name__ == "__main__":
    main(sweep)
