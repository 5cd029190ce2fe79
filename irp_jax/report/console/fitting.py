"""Tables of results that fit the width of a terminal.

Where a table is too wide, cells are broken into lines, columns are left out, and finally all
settings of a run are put into one cell.
"""

from collections.abc import Collection, Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from irp_jax.report.tables import LAST, Results, sections, without_common_columns

LEAST_WANTED = ("minutes", "passes", "lost", "MACs left", "params left", LAST, "epochs")
"""Columns left out on a narrow terminal, in this order."""


def summary(results: Iterable[Results], width: int) -> list[Table]:
    """Returns terminal tables of all runs: one for each data set and model, a row per set of seeds.

    The recipe column is wide. It is left out where the other columns tell the rows apart.

    Args:
        results: the results of all runs.
        width: characters a table may take. If a table is wider, each cell is broken into lines. If
            that is not enough, columns are left out, and a caption below the table names them.
    """
    return [_fitted(name, runs, width) for name, runs in sections(results).items()]


def _fitted(name: str, results: list[Results], width: int) -> Table:
    """Returns a table that fits: breaks cells, then omits columns, then stacks all settings."""
    for known in (("data", "model", "recipe"), ("data", "model")):
        common, titles, rows = without_common_columns(results, known)
        # The number of seeds does not identify a row.
        settings = [n for n in range(titles.index("natural %")) if titles[n] != "runs"]
        names = {tuple(row[n] for n in settings) for row in rows}
        if len(names) == len(rows):
            break
    left_out: list[str] = []
    table = _drawn(titles, rows, left_out)
    if _width(table) > width:
        rows = [[cell.replace(", ", ",\n").replace(" (", "\n(") for cell in row] for row in rows]
        table = _drawn(titles, rows, left_out)
    # Epochs stay if the settings alone do not tell the rows apart.
    spare = [t for t in LEAST_WANTED if t in titles and (t != "epochs" or len(names) == len(rows))]
    for title in spare:
        if _width(table) > width:
            left_out.append(title)
            table = _drawn(titles, rows, left_out)
    for title in reversed(left_out):  # a narrow column may still fit
        fewer = [other for other in left_out if other != title]
        if _width(wider := _drawn(titles, rows, fewer)) <= width:
            left_out, table = fewer, wider
    if _width(table) > width:
        titles, rows = _stacked(titles, rows)
        table = _drawn(titles, rows, left_out)
    table.title = f"{name}{common and f': {common}'}"
    if left_out:
        hidden = ", ".join(left_out)
        table.caption = f"left out, for lack of width: {hidden}; bin/report --markdown has them"
    return table


def _stacked(titles: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Puts all settings of a run into one cell, one setting a line."""
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
    """Returns the characters that a table takes if it is not broken."""
    console = Console(width=10_000, markup=False)
    return Measurement.get(console, console.options, table).maximum
