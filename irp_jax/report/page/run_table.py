"""The table of all runs on the HTML page, and what it is filtered by."""

from collections.abc import Iterable

from irp_jax.config import radius
from irp_jax.report import tables
from irp_jax.report.collect import Run
from irp_jax.report.page.cells import Cell, number, share, text_of
from irp_jax.report.tables import Results

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
        "method": [Cell(text_of(tables.method, run.results)) for run in runs],
        "budget": [_budget(run.results) for run in runs],
        "natural %": [share(run.results, "accuracy.natural") for run in runs],
        "PGD-10 %": [share(run.results, "accuracy.pgd") for run in runs],
        "PGD-10 last %": [share(run.results, "accuracy.pgd-last") for run in runs],
        **{f"{name} %": [_attacked(run.results, name) for run in runs] for name in attacks},
        "params": [number(run.results, "cost.params") for run in runs],
        "params left %": [share(run.results, "cost.params_ratio") for run in runs],
        "MACs": [number(run.results, "cost.macs") for run in runs],
        "MACs left %": [share(run.results, "cost.macs_ratio") for run in runs],
        "data": [Cell(text_of(tables.measured_on, run.results)) for run in runs],
        "model": [Cell(text_of(tables.network, run.results)) for run in runs],
        "granularity": [Cell(str(run.results["config"].get("granularity", ""))) for run in runs],
        "eps": [
            Cell(radius(run.results["attack"]["epsilon"]), key=run.results["attack"]["epsilon"])
            for run in runs
        ],
        "defense": [Cell(text_of(tables.defense, run.results)) for run in runs],
        "seed": [number(run.results, "seed") for run in runs],
        "epochs": [number(run.results, "epochs") for run in runs],
        "minutes": [number(run.results, "wall_time_s", 1, 1 / 60) for run in runs],
        "recipe": [Cell(text_of(tables.recipe, run.results)) for run in runs],
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


def filters(titles: list[str], rows: list[list[Cell]]) -> list[tuple[str, list[str]]]:
    """Returns title and sorted values of the columns to filter by that have several values."""
    found: list[tuple[str, list[str]]] = []
    for title in ("data", "model", "method", "granularity", "budget", "defense"):
        if title in titles:
            place = titles.index(title)
            words = {row[place].text: row[place].key or 0 for row in rows}
            if len(words) > 1:
                found.append((title, sorted(words, key=lambda word: (words[word], word))))
    return found
