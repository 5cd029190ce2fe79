"""Finds the results of runs in files and folders, with their evaluations and adversarial images.

A file that cannot be used is not an error. It is named in a note of one line.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from irp_jax.config import COSTS, SETTINGS_OF, Config, settings
from irp_jax.report.tables import Results, lines

NEEDED = {
    "model", "dataset", "method", "seed", "budget", "cost", "attack", "epochs", "wall_time_s",
}  # fmt: skip
"""Keys that the results of a run must have, in addition to config and accuracy."""

NUMBERS = (
    ("accuracy", "natural"), ("accuracy", "pgd"), ("cost", "macs"), ("cost", "params"),
    ("cost", "macs_ratio"), ("cost", "params_ratio"), ("budget", "target"), ("attack", "epsilon"),
    ("attack", "images"), ("epochs",), ("wall_time_s",),
)  # fmt: skip
"""Values of a run's results that must be numbers."""

ROW = ("epoch", "natural", "pgd", "cost_ratio", "frozen")
LAYER = ("layer", "channels_out", "dense_channels_out", "macs", "dense_macs", "params",
         "dense_params")  # fmt: skip
"""Keys of a row of `history` and of a row of `layers`."""

FEW = 8
"""Largest number of adversarial images shown from a file."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Some adversarial images of an evaluation.

    Attributes:
        name: name of the file.
        adversarial: (N, H, W, C), in [0, 1].
        natural: (N, H, W, C), the same images without perturbation; None if the file lacks them.
        labels: N names of the true classes.
        predictions: N names of the predicted classes.
    """

    name: str
    adversarial: np.ndarray
    natural: np.ndarray | None
    labels: tuple[str, ...]
    predictions: tuple[str, ...]


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
    """

    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    unfinished: tuple[Unfinished, ...] = ()


def lacking(results: Mapping[str, Any]) -> list[str]:
    """Returns the names of needed entries that the results of a run do not have."""
    given = results.get("accuracy")
    accuracy = set(given) if isinstance(given, dict) else set()
    return sorted((NEEDED - set(results)) | ({"natural", "pgd"} - accuracy))


def collect(places: Iterable[str | Path | Results]) -> Found:
    """Finds all runs.

    Args:
        places: for each, the folder of a run, a folder of results, one JSON file, or the content of
            a results.json.
    """
    runs: list[tuple[str, Path | None, Results]] = []
    others: list[tuple[Path, Results]] = []
    examples: list[tuple[Path, Examples]] = []
    notes: list[str] = []
    unlike: list[str] = []
    unfinished: list[Unfinished] = []
    for number, place in enumerate(places, start=1):
        if isinstance(place, Mapping):
            problem = _problem(place)
            if problem:
                notes.append(f"results {number}: {problem}")
            else:
                runs.append((f"{place['model']}-{place['dataset']}", None, dict(place)))
            continue
        place = Path(place)
        if not place.exists():
            notes.append(f"no file or folder {place}")
            continue
        before = len(runs), len(others), len(notes), len(unlike), len(unfinished)
        for path in [place] if place.is_file() else sorted(place.rglob("*.json")):
            try:
                found = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                notes.append(f"{path} cannot be read: {str(error).splitlines()[0]}")
                continue
            if not isinstance(found, dict):
                unlike.append(path.name)
            elif {"config", "accuracy"} <= set(found):
                problem = _problem(found)
                if problem:
                    notes.append(f"{path}: {problem}")
                else:
                    runs.append((_name(path), path, found))
            elif _is_evaluation(found):
                others.append((path, found))
            elif not _of_a_workdir(path):
                unlike.append(path.name)
        if place.is_dir():
            examples += _all_examples(place, notes)
            unfinished += _unfinished(place, notes)
        if (len(runs), len(others), len(notes), len(unlike), len(unfinished)) == before:
            notes.append(f"no results in {place}")
    if unlike:
        more = f" and {len(unlike) - 3} more" if unlike[3:] else ""
        notes.append(f"not results of a run, left out: {', '.join(unlike[:3])}{more}")
    found = _assembled(runs, others, examples, notes)
    return dataclasses.replace(found, unfinished=tuple(unfinished))


def _assembled(
    runs: list[tuple[str, Path | None, Results]],
    others: list[tuple[Path, Results]],
    examples: list[tuple[Path, Examples]],
    notes: list[str],
) -> Found:
    """Returns the runs with unique names, and with their evaluations and images."""
    names = [name for name, _, _ in runs]
    ready, used = [], set()
    for number, (name, path, results) in enumerate(runs):
        if names.count(name) > 1:
            name = f"{name} ({names[:number].count(name) + 1})"
        results, older = _completed(results)
        if older:
            notes.append(f"{name} is of another version: {older}")
        mine = [place for place, one in others if _same_network(one, results)]
        shown = [place for place, _ in examples if path and _belongs(place, path, runs)]
        used |= {*mine, *shown}
        ready.append(Run(
            name=name, results=results,
            evaluations=tuple(one for place, one in others if place in mine),
            examples=tuple(one for place, one in examples if place in shown),
        ))  # fmt: skip
    for place in [place for place, _ in [*others, *examples] if place not in used]:
        notes.append(f"{place}: the run that this evaluation is of was not found")
    return Found(runs=tuple(ready), notes=tuple(notes))


def _name(path: Path) -> str:
    return path.resolve().parent.name if path.name == "results.json" else path.stem


def _of_a_workdir(path: Path) -> bool:
    """Returns whether a file is of a run or a saved network, and no results: it needs no note."""
    return path.name in ("config.json", "robustbench.json") or "checkpoints" in path.parts


def _problem(found: Mapping[str, Any]) -> str:
    """Returns why results cannot be used; empty if they can."""
    if missing := lacking(found):
        return f"lacks {', '.join(missing)}"
    if not isinstance(found.get("config"), dict):
        return "config must be a JSON object"
    for keys in NUMBERS:
        value: Any = found
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{'.'.join(keys)} must be a number, got {str(value)[:40]!r}"
    if found["budget"].get("kind") not in COSTS:
        kinds = " or ".join(COSTS)
        return f"budget.kind must be {kinds}, got {str(found['budget'].get('kind'))[:40]!r}"
    return ""


def _is_evaluation(found: Mapping[str, Any]) -> bool:
    """Returns whether this is an output of `bin/evaluate --out` with all keys that are needed."""
    attack, accuracy = found.get("attack"), found.get("accuracy")
    curve = found.get("curve", {"epsilon": [], "accuracy": []})
    return (
        isinstance(attack, dict)
        and {"name", "epsilon", "images"} <= set(attack)
        and isinstance(accuracy, dict)
        and all(isinstance(value, int | float) for value in accuracy.values())
        and isinstance(curve, dict)
        and {"epsilon", "accuracy"} <= set(curve)
        and len(curve["epsilon"]) == len(curve["accuracy"])
    )


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


def _completed(found: Results) -> tuple[Results, str]:
    """Returns results with values that an older version did not record, and a note on them.

    The value of a setting that is missing is its default, as in `config.identity`.
    """
    usual = {name: value for name, value in settings(Config()).items() if value is not None}
    chosen = {**usual, **found["config"]}
    without_effect = {
        name
        for by, users in SETTINGS_OF.items()
        for value, names in users.items()
        for name in names
        if chosen.get(by) != value
    }
    added = sorted(set(usual) - set(found["config"]) - without_effect)
    said = [f"it has no setting {', '.join(added[:3])}" if added else ""]
    results = {
        **found,
        "config": chosen,
        "rollbacks": found.get("rollbacks", []),
        "identity": found.get("identity", {}),
        "defense": found.get("defense", found["config"].get("defense", "unknown")),
        "passes_per_image": found.get("passes_per_image", 0.0),
    }
    for key, needed in (("history", ROW), ("layers", LAYER)):
        rows = found.get(key, [])
        whole = isinstance(rows, list) and all(
            isinstance(row, dict) and set(needed) <= set(row) for row in rows
        )
        if not whole:
            said.append(f"its {key} is not as expected")
        results[key] = rows if whole else []
    try:
        lines([results])
    except Exception as error:  # any field may have another type
        said.append(f"its settings cannot be read ({type(error).__name__}: {error})")
    return results, "; ".join(part for part in said if part)


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
            if isinstance(row, dict) and set(ROW) <= set(row):
                found.append(row)
    return found


def _belongs(images: Path, results: Path, runs: list[tuple[str, Path | None, Results]]) -> bool:
    """Returns whether a file of images belongs to a run.

    It must be in the folder of the run. If results of several runs share a folder, the names of
    images and results must be equal.
    """
    if results.name == "results.json":
        return results.parent in images.parents
    alone = sum(path is not None and path.parent == results.parent for _, path, _ in runs) == 1
    return images.parent == results.parent and (alone or images.stem == results.stem)


def _all_examples(place: Path, notes: list[str]) -> list[tuple[Path, Examples]]:
    found = []
    for path in sorted(place.rglob("*.npz")):
        try:
            if one := _examples(path):
                found.append((path, one))
        except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile) as error:
            notes.append(f"{path} cannot be read: {error}")
    return found


def _examples(path: Path) -> Examples | None:
    """Reads the first misclassified images of an attack; None if the file has none."""
    with np.load(path) as file:
        if not {"images", "labels", "predictions", "broken_by"} <= set(file.files):
            return None
        how = file["broken_by"]
        chosen = np.flatnonzero((how != "") & (how != "natural"))[:FEW]
        if not len(chosen):
            return None
        names = file["class_names"] if "class_names" in file.files else None
        natural = file["natural"][chosen] / 255 if "natural" in file.files else None

        def called(key: str) -> tuple[str, ...]:
            return tuple(str(k if names is None else names[k]) for k in file[key][chosen])

        return Examples(
            name=path.name, adversarial=file["images"][chosen], natural=natural,
            labels=called("labels"), predictions=called("predictions"),
        )  # fmt: skip
