"""One run of a sweep: it is trained and attacked, as far as that is not done, and collected."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from irp_jax import config as configs
from irp_jax import files
from irp_jax.attacks import AttackName, AttackSpec
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.results import check_version

ATTACK_FACTS = (
    "command", "attack", "accuracy", "wall_time_s", "warnings", "environment", "commit",
)  # fmt: skip
"""The facts that are collected of each attack."""

Call = Callable[[str, list[str]], None]
"""Runs a command: (name, flags)."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a sweep wants of each of its runs, besides training and PGD-10."""

    attacks: dict[str, list[str]]
    """Name of each attack -> its flags for bin/evaluate."""
    images: int | None
    """Use only this many test images for the attacks."""
    results: Path | None
    """Folder that collects the results."""


def attack_flags(attacks: Iterable[str]) -> dict[str, list[str]]:
    """Returns name -> flags of bin/evaluate.

    Args:
        attacks: autoattack, pgd-50-10 (50 steps, 10 restarts), or another attack of bin/evaluate.

    Raises:
        UserError: an attack is unknown, or is measured anyway.
    """
    return {name: _flags(name) for name in attacks}


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


def train_and_attack(
    run: Config, before: dict[str, Any] | None, wanted: Wanted, call: Call
) -> dict[str, Any]:
    """Trains and attacks one network, except for what is done already.

    Args:
        run: the settings.
        before: what an earlier sweep collected of the same run.
        wanted: the attacks.
        call: runs a command.

    Returns:
        The results of the run, with those of every attack under `accuracy` and `attacks`.

    Raises:
        UserError: training or an attack failed.
    """
    call("train", configs.flags(run, configs.suited(run.dataset)))
    results = files.read_json(_finished(run)) | {"attacks": {}}
    if before is not None and _same_network(before, results):
        results |= {"attacks": before.get("attacks", {}), "accuracy": before["accuracy"]}
    for name, flags in missing(results, wanted).items():
        _attack(run, name, flags, wanted.images, call)
        found = files.read_json(_attacked(run, name, wanted.images))
        if not _same_network(found, results):
            raise UserError(
                f"the last checkpoint in {run.workdir} cannot be read, so {name} attacked the one "
                f"before it: remove the folder to train anew"
            )
        results["accuracy"][name] = found["accuracy"][flags[0].partition("=")[2]]
        if "pgd-last" in found["accuracy"]:
            results["accuracy"][f"{name}-last"] = found["accuracy"]["pgd-last"]
        results["attacks"][name] = {key: found[key] for key in ATTACK_FACTS}
    return results


def _same_network(one: dict[str, Any], trained: dict[str, Any]) -> bool:
    return one.get("network_sha256", "") == trained.get("network_sha256")


def _attack(run: Config, name: str, flags: list[str], images: int | None, call: Call) -> None:
    """Attacks the trained network and leaves the results in its folder."""
    target = _attacked(run, name, images)
    if target.exists() and _same_network(files.read_json(target), files.read_json(_finished(run))):
        return
    places = [f"--checkpoint={run.workdir}", f"--out={target}"]
    places += [f"--data-dir={run.data_dir}"] if run.data_dir is not None else []
    places += [f"--split={run.evaluate_on}"] if run.evaluate_on != "test" else []
    places += [f"--images={images}"] if images is not None else []
    call("evaluate", [*places, *flags])


def _finished(run: Config) -> Path:
    return configs.workdir(run) / "results.json"


def _attacked(run: Config, name: str, images: int | None) -> Path:
    count = "" if images is None else f"-{images}"
    return configs.workdir(run) / f"{name}{count}.json"


def collect(run: Config, results: dict[str, Any], wanted: Wanted) -> None:
    """Writes the results into the folder that collects them, if there is one."""
    if wanted.results is not None:
        files.write_json(_target(run, wanted.results), results)


def collected(run: Config, wanted: Wanted) -> dict[str, Any] | None:
    """Returns what a sweep collected of the same run, or None.

    Raises:
        UserError: the file is damaged, or of another run or version.
    """
    if wanted.results is None:
        return None
    target = _target(run, wanted.results)
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


def is_complete(found: dict[str, Any] | None, wanted: Wanted) -> bool:
    """Returns whether the collected results have all that is wanted."""
    return found is not None and not missing(found, wanted)


def missing(found: dict[str, Any], wanted: Wanted) -> dict[str, list[str]]:
    """Returns the attacks that the results lack, or have for fewer images than requested."""
    whole = found["attack"]["images"]
    enough = min(wanted.images or whole, whole)
    attacks = found.get("attacks", {})
    counts = {name: attack["attack"]["images"] for name, attack in attacks.items()}
    return {name: flags for name, flags in wanted.attacks.items() if counts.get(name, 0) < enough}


def _target(run: Config, folder: Path) -> Path:
    return folder / f"{configs.workdir(run).name}.json"
