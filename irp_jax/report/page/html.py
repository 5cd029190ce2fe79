"""Writes results to one HTML page: charts, tables and the details of each run.

The page is one file and needs no network connection. `page` writes it. Its text is in
`page.html.jinja`, its style in `page.css`, sorting and filtering in `page.js`. matplotlib draws the
charts: see `charts`.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from irp_jax import __version__, files
from irp_jax.config import radius
from irp_jax.errors import UserError
from irp_jax.report import tables
from irp_jax.report.collect import Found, Run, Unfinished, collect
from irp_jax.report.outcomes import FEW
from irp_jax.report.page import charts
from irp_jax.report.page.cells import text_of
from irp_jax.report.page.details import details, history
from irp_jax.report.page.images import gallery
from irp_jax.report.page.run_table import filters, table
from irp_jax.report.page.svg import inline
from irp_jax.report.tables import Results


def page(places: Iterable[str | Path | Results] | str | Path | Results, path: str | Path) -> Found:
    """Writes the results of runs to an HTML page.

    Args:
        places: for each, the folder of a run, a folder of results, a JSON file, or the content of a
            results.json, such as `Network.results`. One need not be in a list.
        path: the .html file to write.

    Returns:
        The runs on the page, and a note for each file or run that could not be used or is
        incomplete. The page shows the notes.

    Raises:
        UserError: no results were found, or the file cannot be written.
    """
    found = collect([places] if isinstance(places, str | Path | dict) else places)
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
        loader=PackageLoader("irp_jax.report.page", "."), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
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
        sets=_counts(text_of(tables.measured_on, run.results) for run in found.runs),
        panels=_panels(found.runs, links),
        published=charts.PUBLISHED,
        same=same,
        titles=titles,
        numeric=[any(row[place].path for row in rows) for place in range(len(titles))],
        filters=filters(titles, rows),
        rows=list(zip(links, rows, strict=True)),
        galleries=[gallery(*pair) for pair in found.separations],
        few=FEW,
        machines=_machines(found.runs),
        runs=[details(run, link) for run, link in zip(found.runs, links, strict=True)],
    )


def _asset(name: str) -> Markup:
    """Returns the content of a file of this package. It is trusted, so it is not escaped."""
    return Markup((Path(__file__).parent / name).read_text())


def _counts(words: Iterable[str]) -> list[tuple[str, int]]:
    return list(Counter(words).items())


# ---- charts ----------------------------------------------------------------------------------


def _panels(runs: tuple[Run, ...], links: list[str]) -> list[dict[str, Any]]:
    """Returns the charts of accuracy over cost, for each network, data set and radius."""
    sets: dict[str, list[charts.Point]] = {}
    for run, link in zip(runs, links, strict=True):
        one = run.results
        where = f"{text_of(tables.network, one)}, {text_of(tables.measured_on, one)}"
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
        "history": history(one),
    }


# ---- machines ---------------------------------------------------------------------------------


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
