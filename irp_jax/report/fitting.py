"""Tables of results no wider than a terminal: cells broken, columns left out, settings stacked."""

from collections.abc import Collection, Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from irp_jax.report.tables import LAST, Results, sections, told_apart

LEAST_WANTED = ("minutes", "passes", "lost", "MACs left", "params left", LAST, "epochs")
"""Columns that a narrow terminal goes without, the first of them first."""


def summary(results: Iterable[Results], width: int) -> list[Table]:
    """All runs as terminal tables, one for each data set and model, a line per set of seeds.

    The recipe is wide: it is left out where other columns tell the lines apart.

    Args:
        results: of the lines.
        width: characters a table may take. Where it wants more, the parts of a cell stand below
            each other; where that is not enough, columns are left out, which a line below says.
    """
    return [_fitted(name, runs, width) for name, runs in sections(results).items()]


def _fitted(name: str, results: list[Results], width: int) -> Table:
    """Breaks cells into parts, then leaves columns out, then puts all settings into one cell."""
    for known in (("data", "model", "recipe"), ("data", "model")):
        common, titles, rows = told_apart(results, known)
        # How many seeds a line has is no name for it.
        settings = [n for n in range(titles.index("natural %")) if titles[n] != "runs"]
        names = {tuple(row[n] for n in settings) for row in rows}
        if len(names) == len(rows):
            break
    left_out: list[str] = []
    table = _drawn(titles, rows, left_out)
    if _width(table) > width:
        rows = [[cell.replace(", ", ",\n").replace(" (", "\n(") for cell in row] for row in rows]
        table = _drawn(titles, rows, left_out)
    # Where settings do not tell the lines apart, epochs do.
    spare = [t for t in LEAST_WANTED if t in titles and (t != "epochs" or len(names) == len(rows))]
    for title in spare:
        if _width(table) > width:
            left_out.append(title)
            table = _drawn(titles, rows, left_out)
    for title in reversed(left_out):  # a narrow one may fit after all
        fewer = [other for other in left_out if other != title]
        if _width(wider := _drawn(titles, rows, fewer)) <= width:
            left_out, table = fewer, wider
    if _width(table) > width:
        titles, rows = _stacked(titles, rows)
        table = _drawn(titles, rows, left_out)
    table.title = f"{name}{common and f': {common}'}"
    if left_out:
        hidden = ", ".join(left_out)
        table.caption = f"not shown for want of width: {hidden}; bin/report --markdown has them"
    return table


def _stacked(titles: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """What a run is in one cell, part below part."""
    what = titles.index("natural %")

    def run(row: list[str]) -> str:
        parts = zip(titles, row[:what], strict=False)
        return "\n".join(f"{t} {cell}" if t in ("eps", "runs") else cell for t, cell in parts)

    return ["run", *titles[what:]], [[run(row), *row[what:]] for row in rows]


def _drawn(titles: list[str], rows: list[list[str]], left_out: Collection[str]) -> Table:
    shown = [place for place, title in enumerate(titles) if title not in left_out]
    table = Table(show_lines=any("\n" in cell for row in rows for cell in row))
    for place in shown:
        table.add_column(titles[place], justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(row[place] for place in shown))
    return table


def _width(table: Table) -> int:
    """Characters it wants."""
    console = Console(width=10_000, markup=False)
    return Measurement.get(console, console.options, table).maximum
