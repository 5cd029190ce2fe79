"""Finds the results of runs in files and folders, with their evaluations and adversarial images.

A file that cannot be used is not an error. It is named in a note of one line.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from irp_jax.errors import DAMAGED_NPZ, UserError
from irp_jax.report import checking, outcomes
from irp_jax.report.outcomes import Examples, Outcomes, Separation, separating
from irp_jax.report.tables import Results


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run and the evaluations of its network.

    Attributes:
        name: unique among the runs.
        results: the content of results.json, with settings that an older version did not have.
        evaluations: outputs of `bin/evaluate --out` for the same network.
        examples: adversarial images of the network.
    """

    name: str
    results: Results
    evaluations: tuple[Results, ...] = ()
    examples: tuple[Examples, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Unfinished:
    """A run that has no results yet. It may still go on, or have stopped.

    Attributes:
        name: of its folder.
        results: the part of results.json that is known: model, dataset, method, config, epochs,
            budget with kind and target (a share of the dense cost, or None), and the history.
        changed: time of the last epoch, in seconds since 1970; None before the first.
    """

    name: str
    results: Results
    changed: float | None

    @property
    def epochs(self) -> int:
        """Number of epochs so far."""
        return len(self.results["history"])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The runs that were found.

    Attributes:
        runs: in the order of the places and their files.
        notes: a line for each file or run that could not be used or is incomplete.
        unfinished: runs without results.
        separations: names of two runs, and how an attack ended for each image; for each attack
            that `bin/evaluate --save-adversarial` made on both, if just two runs have such files.
    """

    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    unfinished: tuple[Unfinished, ...] = ()
    separations: tuple[tuple[str, str, Separation], ...] = ()


def collect(places: Iterable[str | Path | Results]) -> Found:
    """Finds all runs.

    Args:
        places: for each, the folder of a run, a folder of results, one JSON file, one .npz file of
            `bin/evaluate --save-adversarial`, or the content of a results.json.
    """
    runs: list[tuple[str, Path | None, Results]] = []
    others: list[tuple[Path, Results]] = []
    attacked: list[tuple[Outcomes, Examples | None]] = []
    notes: list[str] = []
    unlike: list[str] = []
    unfinished: list[Unfinished] = []
    for number, place in enumerate(places, start=1):
        if isinstance(place, Mapping):
            problem = checking.problem(place)
            if problem:
                notes.append(f"results {number}: {problem}")
            else:
                runs.append((f"{place['model']}-{place['dataset']}", None, dict(place)))
            continue
        place = Path(place)
        if not place.exists():
            notes.append(f"no file or folder {place}")
            continue
        lists: tuple[list[Any], ...] = (runs, others, attacked, notes, unlike, unfinished)
        before = sum(map(len, lists))
        for path in [place] if place.suffix == ".npz" else sorted(place.rglob("*.npz")):
            if (read := _outcomes(path, notes)) is not None:
                attacked.append(read)
        for path in _json_files(place):
            try:
                found = json.loads(path.read_text())
            except (OSError, ValueError, RecursionError) as error:
                notes.append(f"{path} cannot be read: {str(error).splitlines()[0]}")
                continue
            if not isinstance(found, dict):
                unlike.append(path.name)
            elif {"config", "accuracy"} <= set(found):
                problem = checking.problem(found)
                if problem:
                    notes.append(f"{path}: {problem}")
                else:
                    runs.append((_name(path), path, found))
            elif checking.is_evaluation(found):
                others.append((path, found))
            elif not _of_a_workdir(path):
                unlike.append(path.name)
        if place.is_dir():
            unfinished += _unfinished(place, notes)
        if sum(map(len, lists)) == before:
            notes.append(f"no results in {place}")
    if unlike:
        more = f" and {len(unlike) - 3} more" if unlike[3:] else ""
        notes.append(f"not results of a run, left out: {', '.join(unlike[:3])}{more}")
    found = _assembled(runs, others, attacked, notes)
    return dataclasses.replace(found, unfinished=tuple(unfinished))


def _json_files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(place.rglob("*.json"))
    return [] if place.suffix == ".npz" else [place]


def _assembled(
    runs: list[tuple[str, Path | None, Results]],
    others: list[tuple[Path, Results]],
    attacked: list[tuple[Outcomes, Examples | None]],
    notes: list[str],
) -> Found:
    """Returns the runs with unique names, and with their evaluations and images."""
    names = [name for name, _, _ in runs]
    ready: list[tuple[Run, list[Outcomes]]] = []
    used: set[Path] = set()
    for number, (name, path, results) in enumerate(runs):
        if names.count(name) > 1:
            name = f"{name} ({names[:number].count(name) + 1})"
        results, older = checking.completed(results)
        if older:
            notes.append(f"{name} is of another version: {older}")
        mine = [place for place, one in others if _same_network(one, results)]
        shown = [one for one in attacked if _belongs(one[0], path, results, runs)]
        used |= {*mine, *(one.path for one, _ in shown)}
        run = Run(
            name=name, results=results,
            evaluations=tuple(one for place, one in others if place in mine),
            examples=tuple(few for _, few in shown if few is not None),
        )  # fmt: skip
        ready.append((run, [one for one, _ in shown]))
    for place in [*(place for place, _ in others), *(one.path for one, _ in attacked)]:
        if place not in used:
            notes.append(f"{place}: the run that this evaluation is of was not found")
    separations = tuple(_separations(ready, notes))
    return Found(runs=tuple(run for run, _ in ready), notes=tuple(notes), separations=separations)


def _name(path: Path) -> str:
    return path.resolve().parent.name if path.name == "results.json" else path.stem


def _of_a_workdir(path: Path) -> bool:
    """Returns whether a file is of a run or a saved network, and no results: it needs no note."""
    of_states = {"checkpoints", "underway"} & set(path.parts)
    return path.name in ("config.json", "robustbench.json") or bool(of_states)


def _same_network(evaluation: Results, run: Results) -> bool:
    """Returns whether an evaluation is of the network of a run.

    The digests of the networks are compared. Older results have none, so settings are compared. The
    same arrays in float32 and in 8 bits are two networks.
    """
    if evaluation.get("quantization") != run.get("quantization"):
        return False
    key = "network_sha256"
    if key not in evaluation or key not in run:
        keys: tuple[str, ...] = ("model", "dataset", "method", "seed", "cost", "epochs")
    else:
        keys = (key,)
    return all(evaluation.get(key) == run.get(key) for key in keys)


def _unfinished(place: Path, notes: list[str]) -> list[Unfinished]:
    """Returns the runs that have settings but no results, and notes those that cannot be read."""
    found = []
    for path in sorted(place.rglob("config.json")):
        folder = path.parent
        if (folder / "results.json").exists() or not (folder / ".lock").exists():
            continue  # a finished run, or a saved network
        try:
            said = json.loads(path.read_text())
            settings_ = said["settings"]
            log = folder / "metrics.jsonl"
            results = {
                **{name: settings_[name] for name in ("model", "dataset", "method", "epochs")},
                "config": settings_, "history": _rows(log),
                "budget": {"kind": settings_["cost"], "target": said.get("target")},
            }  # fmt: skip
            changed = log.stat().st_mtime if log.exists() else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{folder} is not finished and cannot be read: {error}")
            continue
        name = folder.resolve().name
        found.append(Unfinished(name=name, results=results, changed=changed))
    return found


def _rows(log: Path) -> list[Results]:
    """Returns the epochs of a log. A line that is being written is left out."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if checking.rows({"history": [row]}, "history"):
                found.append(row)
    return found


def _belongs(
    images: Outcomes,
    path: Path | None,
    results: Results,
    runs: list[tuple[str, Path | None, Results]],
) -> bool:
    """Returns whether a file of images belongs to a run.

    The digests of the networks are compared. Files of older versions have none. They must be in the
    folder of the run. If results of several runs share a folder, the names of images and results
    must be equal.
    """
    if images.network is not None and "network_sha256" in results:
        return images.network == results["network_sha256"]
    if path is None:
        return False
    folder = images.path.parent
    if path.name == "results.json":
        return path.parent in images.path.parents
    alone = sum(its is not None and its.parent == path.parent for _, its, _ in runs) == 1
    return folder == path.parent and (alone or images.path.stem == path.stem)


def _outcomes(path: Path, notes: list[str]) -> tuple[Outcomes, Examples | None] | None:
    """Reads what an attack did to each image; returns None for another or a damaged file."""
    try:
        found = outcomes.read(path)
        return None if found is None else (found, outcomes.examples(found))
    except DAMAGED_NPZ as error:
        notes.append(f"{path} cannot be read: {error}")
        return None


def _separations(
    runs: list[tuple[Run, list[Outcomes]]], notes: list[str]
) -> list[tuple[str, str, Separation]]:
    """Compares the outcomes of two runs under equal attacks, if just two have outcomes."""
    having = [(run, mine) for run, mine in runs if mine]
    if len(having) != 2:
        return []
    (first, ours), (second, theirs) = having
    found, refused = [], []
    for one, other in itertools.product(ours, theirs):
        try:
            found.append((first.name, second.name, separating(one, other)))
        except UserError as error:
            refused.append(f"no images that separate the networks: {error}")
    notes += [] if found else refused[:1]
    return found
