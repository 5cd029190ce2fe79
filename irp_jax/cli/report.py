"""bin/report: shows saved results as tables, plots and an HTML page."""

import contextlib
import dataclasses
import itertools
import os
import sys
from pathlib import Path
from typing import Any

from irp_jax import files
from irp_jax.cli.common import main
from irp_jax.cli.flags import parse
from irp_jax.errors import UserError, extra
from irp_jax.report import checking
from irp_jax.report.console import timing
from irp_jax.report.console.terminal import plain_console, show_results
from irp_jax.report.tables import library_table, markdown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Show the results in folders as a table, and on request as Markdown, plots and a page.

    The folders or files are the first arguments: bin/report RUN_OR_FOLDER... --html=report.html
    """

    results: str = "results"
    """Folder of results.json files (under any names), one such file, or one benchmark file. Several
    are given without this flag, as the first arguments."""
    html: str | None = None
    """Write one .html page with charts, tables and the details of each run. It needs no network. A
    file that cannot be read is named and left out."""
    markdown: bool = False
    """Print the table as Markdown."""
    into: str | None = None
    """Insert the Markdown table into this file, between <!-- results --> and <!-- /results -->. For
    a benchmark of networks the name of the benchmark file takes the place of "results"."""
    plot: str | None = None
    """Plot to this .svg or .png: accuracy against cost. For one file: that run or benchmark."""
    curves: str | None = None
    """Plot to this .svg or .png: accuracy over the epochs. Seeds are averaged into one line."""

    tradeoff: str | None = None
    """Plot to this .svg or .png: natural accuracy against accuracy under attack."""
    follow: bool = False
    """Follow runs while they train: a table in the terminal, and the page of --html on an address
    that only this machine can open. Ctrl-C ends it; the runs go on."""
    port: int = 0
    """Port of that address. 0: a free one."""


BENCHMARKS = {"costs", "networks", "seconds_per_step"}
"""Keys of benchmark files. Each file has one of them."""


def report(arguments: list[str]) -> None:
    """Shows all results of runs in some folders, or one benchmark file."""
    arguments = sorted(arguments, key=lambda word: word == "--follow")  # folders may follow it
    given = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    options = parse(Options, arguments[len(given) :], "bin/report")
    places = [Path(os.path.expanduser(name)) for name in given or [options.results]]
    if options.port and not options.follow:
        raise UserError(f"--port={options.port} is for --follow: give both, or leave it out")
    if options.follow:
        _follow(options, places)
        return
    if options.html is not None:
        _page(places, Path(options.html))
        asked = (options.plot, options.curves, options.tradeoff, options.into)
        if not options.markdown and all(one is None for one in asked):
            return
    if len(places) == 1 and places[0].is_file():
        found = files.read_json(places[0])
        if isinstance(found, dict) and BENCHMARKS & set(found):
            _shown_benchmark(options, places[0], found)
            return
    runs = _runs(places)
    where = ", ".join(map(str, places))
    if options.plot is not None and len(runs) == 1:
        if not checking.rows(runs[0], "history") or not checking.rows(runs[0], "layers"):
            raise UserError(f"{where} has no history of its epochs: leave out --plot")
        _draw("run_picture", runs[0], options.plot)
    elif options.plot is not None:
        _draw("budget_picture", runs, options.plot)
    if options.curves is not None:
        traced = [one for one in runs if checking.rows(one, "history")]
        if not traced:
            raise UserError(f"no run in {where} has a history of its epochs: leave out --curves")
        _draw("curves_picture", traced, options.curves)
    if options.tradeoff is not None:
        _draw("tradeoff_picture", runs, options.tradeoff)
    if options.into is not None:
        _insert(Path(options.into), "results", markdown(runs))
    if options.markdown:
        sys.stdout.write(markdown(runs))
    else:
        show_results(plain_console(), runs)


def _runs(places: list[Path]) -> list[dict[str, Any]]:
    """Returns the results of runs that can be shown, and prints a line for each other file.

    Raises:
        UserError: none can be shown.
    """
    runs: list[dict[str, Any]] = []
    notes: list[str] = []
    for place in places:
        if not place.exists():
            raise UserError(f"no file or folder {place}: give a folder of results.json files")
        for path in [place] if place.is_file() else sorted(place.rglob("*.json")):
            try:
                found = files.read_json(path)
            except UserError as error:
                notes.append(str(error))
                continue
            if not isinstance(found, dict) or not {"config", "accuracy"} <= set(found):
                continue
            if why := checking.problem(found):
                notes.append(f"{path} is of another version of irp_jax, or damaged: {why}")
            elif not checking.is_readable(found):
                notes.append(f"{path} is of another version of irp_jax")
            else:
                runs.append(found)
    if notes and not runs:
        more = f" (and {len(notes) - 1} more files)" if notes[1:] else ""
        raise UserError(f"no results to show: {notes[0]}{more}")
    for note in notes:
        print(f"{note}: left out", file=sys.stderr)
    if not runs:
        where = ", ".join(map(str, places))
        raise UserError(f"no results in {where}: give a folder of results.json files")
    return runs


def _follow(options: Options, places: list[Path]) -> None:
    """Serves the page and shows progress until Ctrl-C."""
    others = ("html", "into", "plot", "curves", "tradeoff")
    if options.markdown or any(getattr(options, name) is not None for name in others):
        raise UserError("--follow only shows progress: leave out the other flags")
    for place in places:
        if not place.exists():
            raise UserError(f"no file or folder {place}: start a run, or give its folder")
    with extra("plots"):
        from irp_jax.report.page import live
    console = plain_console()
    with live.serve(places, options.port) as address:
        print(f"{address} shows the page. Ctrl-C ends it; the runs go on.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            live.follow(places, console)


def _page(places: list[Path], path: Path) -> None:
    """Writes the page, and names what is not on it."""
    with extra("plots"):
        from irp_jax.report.page import html
    found = html.page(places, path)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    size = path.stat().st_size / 1e6
    runs = f"{len(found.runs)} run{'s' if len(found.runs) != 1 else ''}"
    more = f", {len(found.unfinished)} unfinished" if found.unfinished else ""
    print(f"{path}: {runs}{more}, {size:.1f} MB")


def _draw(kind: str, results: Any, path: str) -> None:
    """Writes one of the plots of `report.plots`."""
    with extra("plots"):
        from irp_jax.report import plots
    plots.save(getattr(plots, kind)(results), Path(path))


def _shown_benchmark(options: Options, place: Path, found: dict[str, Any]) -> None:
    try:
        _benchmark(options, place, found)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{place} is not a complete benchmark file ({what}): run the benchmark again"
        ) from error


def _benchmark(options: Options, place: Path, found: dict[str, Any]) -> None:
    """Shows one benchmark file: a plot of costs, or a table of networks or of times."""
    if "costs" in found:
        if options.plot is None or options.curves is not None or options.tradeoff is not None:
            raise UserError(f"{place} is a benchmark of costs: give --plot=FILE.svg to draw it")
        _draw("cost_picture", found, options.plot)
        return
    if any(picture is not None for picture in (options.plot, options.curves, options.tradeoff)):
        raise UserError(f"{place} is shown as a table: leave out --plot, --curves and --tradeoff")
    if "seconds_per_step" in found:
        if options.into is not None or options.markdown:
            raise UserError(f"{place} is only for a terminal: leave out --into and --markdown")
        timing.show(found, plain_console())
        return
    if options.into is not None:
        _insert(Path(options.into), place.stem, library_table(found))
    else:
        sys.stdout.write(library_table(found))


def _insert(path: Path, name: str, table: str) -> None:
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file: give a Markdown file") from error
    before, _, rest = text.partition(opening)
    old, found, after = rest.partition(closing)
    if not found:
        raise UserError(f"{path} has no place for the table: add lines {opening} and {closing}")
    if opening in old:
        raise UserError(f"{path} has {opening} twice before {closing}: close or remove the first")
    whole = f"{before}{opening}\n{table}{closing}{after}"
    files.write_whole(path, lambda file: file.write(whole.encode()))


if __name__ == "__main__":
    main(report)
