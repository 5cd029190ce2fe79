"""Writes results to one HTML page: charts, tables and the details of each run.

The page is one file and needs no network connection. `page` writes it. Its text is in
`page.html.jinja`, its style in `page.css`, sorting and filtering in `page.js`. matplotlib draws the
charts: see `charts`.
"""

import base64
import io
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imsave

from irp_jax import __version__, files
from irp_jax.config import radius, suited
from irp_jax.errors import UserError
from irp_jax.report import charts, tables
from irp_jax.report.collect import Examples, Found, Run, Unfinished, collect
from irp_jax.report.svg import inline
from irp_jax.report.tables import Results


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: the text of the cell.
        path: path of the number in the results, keys joined by dots; empty for text.
        scale: factor from the number in the results to the number in the cell.
        key: number to sort the column by; None to sort by the text.
    """

    text: str
    path: str = ""
    scale: float = 1
    key: float | None = None


def page(places: Iterable[str | Path | Results] | str | Path, path: str | Path) -> Found:
    """Writes the results of runs to an HTML page.

    Args:
        places: for each, the folder of a run, a folder of results, a JSON file, or the content of a
            results.json, such as `Network.results`.
        path: the .html file to write.

    Returns:
        The runs on the page, and a note for each file or run that could not be used or is
        incomplete. The page shows the notes.

    Raises:
        UserError: no results were found, or the file cannot be written.
    """
    found = collect([places] if isinstance(places, str | Path) else places)
    if not found.runs and not found.unfinished:
        why = f" ({found.notes[0]})" if found.notes else ""
        raise UserError(f"no results to show{why}: give the folder of a run, or of results")
    write(found, Path(path))
    return found


def write(found: Found, path: Path) -> None:
    """Writes the page of the runs that were found, completely or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"{path} is not the name of an HTML file: give a name that ends in .html")
    files.check_place(path)  # before the charts are drawn
    text = render(found).encode()
    files.write_whole(path, lambda file: file.write(text))


def render(found: Found, *, live: bool = False) -> str:
    """Returns the HTML of the page.

    Args:
        found: the runs to show.
        live: whether the page loads itself again when results change. `live.serve` serves such a
            page; a page in a file cannot do this.
    """
    environment = Environment(
        loader=PackageLoader("irp_jax.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    same, titles, rows = table(found.runs)
    links = [f"run-{number}" for number in range(1, len(found.runs) + 1)]
    return environment.get_template("page.html.jinja").render(
        version=__version__,
        css=_asset("page.css"),
        js=_asset("page.js"),
        live=_asset("live.js") if live else "",
        notes=found.notes,
        unfinished=[_progress(run, n) for n, run in enumerate(found.unfinished, start=1)],
        sets=_counts(_text_of(tables.measured_on, run.results) for run in found.runs),
        panels=_panels(found.runs, links),
        published=charts.PUBLISHED,
        same=same,
        titles=titles,
        numeric=[any(row[place].path for row in rows) for place in range(len(titles))],
        filters=_filters(titles, rows),
        rows=list(zip(links, rows, strict=True)),
        machines=_machines(found.runs),
        runs=[_details(run, link) for run, link in zip(found.runs, links, strict=True)],
    )


def _asset(name: str) -> Markup:
    """Returns the content of a file of this package. It is trusted, so it is not escaped."""
    return Markup((Path(__file__).parent / name).read_text())


def _counts(words: Iterable[str]) -> list[tuple[str, int]]:
    return list(Counter(words).items())


def _text_of(of: Any, results: Results) -> str:
    """Returns the text that a function of `tables` gives for a run; a dash if it fails."""
    try:
        return str(of(results))
    except Exception:  # settings of another version may have any type
        return "-"


# ---- numbers ---------------------------------------------------------------------------------


def number(
    results: Mapping[str, Any], path: str, digits: int | None = None, scale: float = 1
) -> Cell:
    """Returns the cell for a number in the results; an empty cell if there is no such number."""
    value: Any = results
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value.get(key)
        if value is None:
            return Cell("")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value))
    shown = value * scale
    text = f"{shown:,}" if digits is None else f"{shown:,.{digits}f}"
    return Cell(text, path, scale, shown)


def share(results: Mapping[str, Any], path: str) -> Cell:
    """Returns the cell for a share in the results, shown in percent."""
    return number(results, path, 2, 100)


# ---- the table of all runs -------------------------------------------------------------------


SAID_ONCE = ("method", "budget", "data", "model", "granularity", "eps", "defense", "seed", "epochs",
             "recipe")  # fmt: skip
"""Columns that are left out of the table of all runs if all their cells are equal."""


def table(runs: Iterable[Run]) -> tuple[dict[str, str], list[str], list[list[Cell]]]:
    """Returns the table of all runs, without empty columns.

    Returns:
        title -> value, for columns of `SAID_ONCE` whose cells are equal; the titles of the other
        columns; a row of cells for each run.
    """
    runs = list(runs)
    attacks = list(dict.fromkeys(
        name for run in runs for name in run.results["accuracy"]
        if name not in ("natural", "pgd", "pgd-last")
    ))  # fmt: skip
    columns = {
        "run": [Cell(run.name) for run in runs],
        "method": [Cell(_text_of(tables.method, run.results)) for run in runs],
        "budget": [_budget(run.results) for run in runs],
        "natural %": [share(run.results, "accuracy.natural") for run in runs],
        "PGD-10 %": [share(run.results, "accuracy.pgd") for run in runs],
        "PGD-10 last %": [share(run.results, "accuracy.pgd-last") for run in runs],
        **{f"{name} %": [_attacked(run.results, name) for run in runs] for name in attacks},
        "params": [number(run.results, "cost.params") for run in runs],
        "params left %": [share(run.results, "cost.params_ratio") for run in runs],
        "MACs": [number(run.results, "cost.macs") for run in runs],
        "MACs left %": [share(run.results, "cost.macs_ratio") for run in runs],
        "data": [Cell(_text_of(tables.measured_on, run.results)) for run in runs],
        "model": [Cell(_text_of(tables.network, run.results)) for run in runs],
        "granularity": [Cell(str(run.results["config"].get("granularity", ""))) for run in runs],
        "eps": [
            Cell(radius(run.results["attack"]["epsilon"]), key=run.results["attack"]["epsilon"])
            for run in runs
        ],
        "defense": [Cell(_text_of(tables.defense, run.results)) for run in runs],
        "seed": [number(run.results, "seed") for run in runs],
        "epochs": [number(run.results, "epochs") for run in runs],
        "minutes": [number(run.results, "wall_time_s", 1, 1 / 60) for run in runs],
        "recipe": [Cell(_text_of(tables.recipe, run.results)) for run in runs],
    }
    columns = {title: cells for title, cells in columns.items() if any(c.text for c in cells)}
    same = {
        title: cells[0].text
        for title, cells in columns.items()
        if title in SAID_ONCE and len(cells) > 1 and len({cell.text for cell in cells}) == 1
    }
    columns = {title: cells for title, cells in columns.items() if title not in same}
    return same, list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _budget(results: Results) -> Cell:
    """Returns the cell of the budget, sorted by its share of the dense cost."""
    kind, target = results["budget"]["kind"], results["budget"]["target"]
    dense = results["cost"].get(f"dense_{kind}") or 1
    given = results["config"].get("budget", target)
    return Cell(f"{given} {kind}", key=target if target <= 1 else target / dense)


def _attacked(results: Results, name: str) -> Cell:
    """Returns accuracy under an attack, with the number of images if PGD was on another number."""
    cell = share(results, f"accuracy.{name}")
    other = results.get("attacks", {}).get(name, {}).get("attack", {}).get("images")
    if cell.path and other not in (None, results["attack"]["images"]):
        return cell._replace(text=f"{cell.text} ({other:,} images)")
    return cell


def _filters(titles: list[str], rows: list[list[Cell]]) -> list[tuple[str, list[str]]]:
    """Returns title and sorted values of the columns to filter by that have several values."""
    found: list[tuple[str, list[str]]] = []
    for title in ("data", "model", "method", "granularity", "budget", "defense"):
        if title in titles:
            place = titles.index(title)
            words = {row[place].text: row[place].key or 0 for row in rows}
            if len(words) > 1:
                found.append((title, sorted(words, key=lambda word: (words[word], word))))
    return found


# ---- charts ----------------------------------------------------------------------------------


def _panels(runs: tuple[Run, ...], links: list[str]) -> list[dict[str, Any]]:
    """Returns the charts of accuracy over cost, for each network, data set and radius."""
    sets: dict[str, list[charts.Point]] = {}
    for run, link in zip(runs, links, strict=True):
        one = run.results
        where = f"{_text_of(tables.network, one)}, {_text_of(tables.measured_on, one)}"
        what = f"{where}, eps {radius(one['attack']['epsilon'])}"
        sets.setdefault(what, []).append((link, one))
    names = {"natural": "Natural", "pgd": "PGD-10", "autoattack": "AutoAttack"}
    panels = []
    for number_, (what, points) in enumerate(sets.items(), start=1):
        drawn: dict[str, list[tuple[str, Markup]]] = {}
        for kind in ("params", "macs"):
            for key, name in names.items():
                having = [(link, one) for link, one in points if _has(one, key)]
                if having:
                    label = (
                        f"{name} accuracy over {kind} left, {what}, {len(having)} runs. The "
                        f"table of runs has the numbers."
                    )
                    figure = charts.accuracy_by_cost(having, key, kind)
                    text = inline(figure, f"cost-{number_}-{kind}-{key}", label)
                    few = _fewer(having, key)
                    title = f"{name} accuracy, %{few}"
                    drawn.setdefault(kind, []).append((title, Markup(text)))
        panels.append({"what": what, "kinds": drawn, "published": bool(charts.published(points))})
    return panels


def _has(results: Results, key: str) -> bool:
    value = results["accuracy"].get(key)
    return isinstance(value, int | float) and min(results["cost"][k] for k in _COSTS) > 0


_COSTS = ("macs", "params")


def _fewer(points: list[charts.Point], key: str) -> str:
    """Returns a note if an accuracy was measured on another number of images than PGD."""
    counts = {
        one.get("attacks", {}).get(key, {}).get("attack", one["attack"])["images"]
        for _, one in points
    }
    usual = {one["attack"]["images"] for _, one in points}
    return f", {min(counts):,} images or more" if counts - usual else ""


# ---- unfinished runs -------------------------------------------------------------------------


def _progress(run: Unfinished, place: int) -> dict[str, Any]:
    """Returns the facts of a run that is not finished."""
    one, svg = run.results, Markup("")
    if one["history"]:
        label = f"Accuracy and cost in {run.epochs} epochs. A table below has the values."
        svg = Markup(inline(charts.training(one), f"unfinished-{place}", label))
    at = "" if run.changed is None else f"{time.strftime('%F %T', time.localtime(run.changed))}"
    return {
        "name": run.name,
        "line": f"{one['model']} on {one['dataset']}, {one['method']}, "
        f"{run.epochs} of {one['epochs']} epochs",
        "done": run.epochs,
        "of": one["epochs"],
        "changed": at,
        "chart": svg,
        "history": _history(one),
    }


# ---- the facts of one run --------------------------------------------------------------------


def _details(run: Run, link: str) -> dict[str, Any]:
    one = run.results
    drawn: list[tuple[str, Markup]] = []
    if one["history"]:
        label = f"Accuracy and cost in {len(one['history'])} epochs. A table below has the values."
        figure = charts.training(one)
        drawn.append(("Training", Markup(inline(figure, f"{link}-training", label))))
    if one["layers"]:
        label = f"Kept size of {len(one['layers'])} layers. A table below has the numbers."
        figure = charts.layers(one)
        drawn.append(("Kept size of each layer", Markup(inline(figure, f"{link}-net", label))))
    curves = [place for place, later in enumerate(run.evaluations) if later.get("curve")]
    for place in curves:
        evaluation = run.evaluations[place]
        attack = evaluation["attack"]
        title = f"Robustness over eps: {attack['name']}, {attack['images']:,} images"
        text = inline(charts.robustness(evaluation), f"{link}-curve{place}", title)
        drawn.append((title, Markup(text)))
    return {
        "link": link,
        "name": run.name,
        "line": f"{one['model']} on {one['dataset']}, {one['method']}, "
        f"{100 * one['accuracy']['natural']:.2f} % natural, "
        f"{100 * one['accuracy']['pgd']:.2f} % PGD-10, "
        f"{100 * one['cost']['params_ratio']:.1f} % of the parameters",
        "charts": drawn,
        "accuracies": _accuracies(run),
        "costs": _costs(one),
        "layers": _layers(one),
        "history": _history(one),
        "curves": [_curve(run, place) for place in curves],
        "examples": [_images(examples) for examples in run.examples],
        "settings": _settings(one),
        "environment": _facts(one.get("environment")),
        "commands": _commands(run),
    }


def _accuracies(run: Run) -> list[tuple[str, Cell, str]]:
    """Returns name and accuracy of each attack, and the settings of the measurement."""
    one, found = run.results, []
    for name, value in one["accuracy"].items():
        if isinstance(value, int | float):
            other = one.get("attacks", {}).get(name, {}).get("attack") or one["attack"]
            attack = one["attack"] if name in ("natural", "pgd", "pgd-last") else other
            shown = {"pgd": "PGD-10", "pgd-last": "PGD-10, last iterate"}.get(name, name)
            found.append((shown, share(one, f"accuracy.{name}"), _attack(name, attack)))
    for place, evaluation in enumerate(run.evaluations):
        for name in evaluation["accuracy"]:
            if name != "natural" and not evaluation.get("curve"):
                cell = share(_later(run), f"evaluations.{place}.accuracy.{name}")
                found.append((f"{name}, later", cell, _attack(name, evaluation["attack"])))
    return found


def _later(run: Run) -> dict[str, Any]:
    """Returns the evaluations of a run in the form that `number` reads."""
    return {"evaluations": list(run.evaluations)}


def _attack(name: str, attack: Mapping[str, Any]) -> str:
    parts = [f"{attack['images']:,} images"]
    if name != "natural":
        parts.append(f"{attack.get('norm', 'linf')} eps {radius(attack['epsilon'])}")
        counts = [key for key in ("steps", "restarts") if attack.get(key, 1) != 1]
        parts += [f"{attack[key]} {key}" for key in counts]
    return ", ".join(parts)


def _costs(one: Results) -> list[tuple[str, Cell, Cell, Cell]]:
    return [
        (name, number(one, f"cost.{key}"), number(one, f"cost.dense_{key}"),
         share(one, f"cost.{key}_ratio"))
        for key, name in (("macs", "MACs per image"), ("params", "parameters"))
    ]  # fmt: skip


def _layers(one: Results) -> list[list[Cell]]:
    keys = ("channels_out", "dense_channels_out", "macs", "dense_macs", "params", "dense_params")
    return [
        [Cell(str(row["layer"])), *(number(one, f"layers.{place}.{key}") for key in keys)]
        for place, row in enumerate(one["layers"])
    ]


def _history(one: Results) -> list[list[Cell]]:
    return [
        [
            number(one, f"history.{place}.epoch"),
            share(one, f"history.{place}.natural"),
            share(one, f"history.{place}.pgd"),
            share(one, f"history.{place}.cost_ratio"),
            number(one, f"history.{place}.loss", 4),
        ]
        for place in range(len(one["history"]))
    ]


def _curve(run: Run, place: int) -> dict[str, Any]:
    """Returns name and rows of the curve of an evaluation of a run."""
    evaluation = run.evaluations[place]
    rows = [
        (radius(epsilon), share(_later(run), f"evaluations.{place}.curve.accuracy.{number_}"))
        for number_, epsilon in enumerate(evaluation["curve"]["epsilon"])
    ]
    return {"name": evaluation["attack"]["name"], "rows": rows}


def _images(examples: Examples) -> dict[str, Any]:
    """Returns the images of a grid as data URIs, with true and predicted classes."""
    grid = []
    for place, (true, said) in enumerate(zip(examples.labels, examples.predictions, strict=True)):
        adversarial = examples.adversarial[place]
        cells = [(f"adversarial image of {true}, classified as {said}", _png(adversarial))]
        if examples.natural is not None:
            natural = examples.natural[place]
            change = adversarial - natural
            largest = max(float(np.abs(change).max()), 1e-6)
            stronger = f"difference, multiplied by {0.5 / largest:.0f}"
            cells.insert(0, (f"natural image of {true}", _png(natural)))
            cells.append((stronger, _png(0.5 + change / largest / 2)))
        grid.append({"true": true, "said": said, "images": cells})
    return {"name": examples.name, "grid": grid}


def _png(image: np.ndarray) -> str:
    file = io.BytesIO()
    pixels = np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)
    imsave(file, np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _settings(one: Results) -> list[tuple[str, str, bool]]:
    """Returns the settings of a run, and whether each differs from the default for its data."""
    usual = suited(str(one["dataset"]))
    return [
        (name, str(value), getattr(usual, name, value) != value)
        for name, value in sorted(one["config"].items())
        if value not in (None, "")
    ]


def _facts(environment: Any) -> list[tuple[str, str]]:
    if not isinstance(environment, Mapping):
        return []
    return [(str(name).replace("_", " "), str(value)) for name, value in environment.items()]


def _commands(run: Run) -> list[tuple[str, str]]:
    one = run.results
    attacks = one.get("attacks", {})
    everything = [("training", one)]
    everything += [(name, attacks[name]) for name in attacks]
    everything += [("evaluation", evaluation) for evaluation in run.evaluations]
    return [
        (f"{name}, commit {str(found.get('commit') or 'unknown')[:12]}", str(found["command"]))
        for name, found in everything
        if isinstance(found, Mapping) and found.get("command")
    ]


def _machines(runs: Iterable[Run]) -> list[tuple[str, str, int, str]]:
    """Returns hardware, software, number of runs and their total hours, for each machine."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        facts = run.results.get("environment")
        facts = facts if isinstance(facts, Mapping) else {}
        on_cpu = facts.get("platform") == "cpu"
        device = facts.get("processor" if on_cpu else "device", "unknown")
        count = facts.get("device_count", 1)
        cores = f", {facts['cpu_count']} cores" if on_cpu and "cpu_count" in facts else ""
        software = ", ".join(f"{n} {facts[n]}" for n in ("jax", "flax", "python") if n in facts)
        found.setdefault((f"{count} x {device}{cores}", software), []).append(
            run.results["wall_time_s"]
        )
    return [(*what, len(s), f"{sum(s) / 3600:.2f}") for what, s in found.items()]
