"""Plots of results. All drawing is in this file.

It does not use pyplot, so that the backend of a notebook is not changed.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from irp_jax.config import radius
from irp_jax.errors import UserError
from irp_jax.report.tables import (
    Results,
    commits,
    defense,
    groups,
    measured_on,
    method,
    network,
    recipe,
    settings,
)

COLORS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
"""Colours of lines, used in this order."""

KEY_WITHIN, LINES_AT_MOST = 6, 20
"""Most lines with the legend inside the plot, and most lines that can be told apart."""

MARKERS = "os"
"""Markers of lines: the second one once all colours were used."""

INK = {
    "dense": "#c9ced6",
    "kept": "#1f6feb",
    "natural": "#1f6feb",
    "pgd": "#d1242f",
    "cost": "#57606a",
}


def run_picture(results: Results, path: Path) -> None:
    """Draws one run: cost and accuracy over the epochs, and the channels left in each layer.

    Args:
        results: the results of a run with channel granularity; must hold `history` and `layers`.
        path: .svg or .png to write.
    """
    history, layers = results["history"], results["layers"]
    figure = Figure((11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for key, label in (
        ("natural", "natural accuracy"),
        ("pgd", "PGD-10 accuracy"),
        ("cost_ratio", "cost left"),
    ):
        color = INK["cost" if key == "cost_ratio" else key]
        style = "--" if key == "cost_ratio" else "-"
        left.plot(epochs, [100 * row[key] for row in history], style, color=color, label=label)
    frozen = next((row["epoch"] for row in history if row["frozen"]), None)
    if frozen is not None:
        left.axvline(frozen - 1, color=INK["cost"], linewidth=0.8)
        left.annotate(" masks frozen,\n network compacted", (frozen - 1, 2), fontsize=8)
    left.set(xlabel="epoch", ylabel="%", ylim=(0, 103), title=_headline(results))
    left.legend(frameon=False, fontsize=8)
    positions = range(len(layers))
    right.bar(
        positions, [row["dense_channels_out"] for row in layers], color=INK["dense"], label="before"
    )
    right.bar(positions, [row["channels_out"] for row in layers], color=INK["kept"], label="left")
    right.set_xticks(positions, [row["layer"] for row in layers], rotation=90, fontsize=6)
    ratio = results["cost"]["macs_ratio"]
    right.set(
        ylabel="output channels", title=f"{results['model']}: {ratio:.1%} of the operations left"
    )
    right.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _headline(results: Results) -> str:
    """Returns a short title for the method of a run."""
    words = {"lagrangian": "learned together, within the budget", "hinge": "as published"}
    return words.get(results["method"], f"baseline: {results['method']}")


def budget_picture(results: Sequence[Results], path: Path) -> None:
    """Draws accuracy against the cost left. Runs that differ in the budget alone form one line.

    Args:
        results: the runs; seeds are averaged, and their range is drawn as an error bar.
        path: .svg or .png to write.

    Raises:
        UserError: there are more lines than can be told apart.
    """
    lines: dict[tuple[str, ...], list[list[Results]]] = defaultdict(list)
    for runs in groups(results):
        one = runs[0]
        where = (network(one), f"of {one['budget']['kind']}", measured_on(one))
        lines[method(one), *_setting(one), *where, f"{one['epochs']} epochs"].append(runs)
    if len(lines) > LINES_AT_MOST:
        raise UserError(
            f"{len(lines)} lines cannot be told apart: give a folder of runs that differ less"
        )
    below = 0.0 if len(lines) <= KEY_WITHIN else 0.2 * len(lines)  # inches
    figure = Figure((11, 3.8 + below), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    names = _names([(name, rest) for name, *rest in lines])
    for axis, (key, label) in zip(
        axes, (("natural", "natural accuracy, %"), ("pgd", "PGD-10 accuracy, %")), strict=True
    ):
        for number, (name, sets) in enumerate(zip(names, lines.values(), strict=True)):
            x = [mean(_left(r) for r in runs) for runs in sets]
            values = [[100 * r["accuracy"][key] for r in runs] for runs in sets]
            y = [mean(v) for v in values]
            error = [
                [m - min(v) for m, v in zip(y, values, strict=True)],
                [max(v) - m for m, v in zip(y, values, strict=True)],
            ]
            order: Any = sorted(range(len(x)), key=x.__getitem__)
            axis.errorbar(
                [x[i] for i in order], [y[i] for i in order],
                [[side[i] for i in order] for side in error],
                marker=MARKERS[number // len(COLORS)], markersize=4, capsize=2,
                label=name,
            )  # fmt: skip
        axis.set(xlabel="cost left, fraction of dense", ylabel=label)
    if len(lines) <= KEY_WITHIN:
        axes[0].legend(frameon=False, fontsize=8)
    else:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8)
    _save(figure, path)


def tradeoff_picture(results: Sequence[Results], path: Path) -> None:
    """Draws natural accuracy against accuracy under attack: one point for each set of seeds.

    Points of one defense are joined in the order of their natural accuracy. Each is labelled with
    the settings that the points do not share. PGD-10 accuracy has a filled marker. AutoAttack
    accuracy, where it was measured, has a hollow marker.

    Args:
        results: the runs, of one data set, network and budget; seeds are averaged.
        path: .svg or .png to write.

    Raises:
        UserError: the runs are of several data sets, networks or budgets.
    """
    if len({_row(one) for one in results}) > 1:
        raise UserError(
            "natural and robust accuracy can be compared at one data set, network and budget: give "
            "a folder of such runs"
        )
    sets = groups(results)
    names = _names([("", [method(runs[0]), *_setting(runs[0])]) for runs in sets])
    lines: dict[str, list[tuple[str, list[Results]]]] = defaultdict(list)
    for name, runs in zip(names, sets, strict=True):
        how = ", then ".join(part.partition(",")[0] for part in defense(runs[0]).split(", then "))
        lines[how].append((name.removeprefix(", ").removeprefix(how).strip(", "), runs))
    figure = Figure((8, 5.5), layout="constrained")
    axis = figure.subplots()
    for number, (how, points) in enumerate(sorted(lines.items())):
        color = COLORS[number % len(COLORS)]
        for key, full in (("pgd", True), ("autoattack", False)):
            found = sorted(
                (_mean(runs, "natural"), _mean(runs, key), name)
                for name, runs in points
                if all(key in run["accuracy"] for run in runs)
            )
            if not found:
                continue
            x, y, _ = zip(*found, strict=True)
            axis.plot(
                x, y, "o-" if full else "o:", color=color, markersize=5, linewidth=1,
                markerfacecolor=color if full else "none",
                label=f"{how}, {'PGD-10' if full else _autoattack(results)}",
            )  # fmt: skip
            for natural, robust, name in found if full else ():
                axis.annotate(
                    name, (natural, robust), fontsize=7, xytext=(3, 4), textcoords="offset points"
                )
    axis.margins(x=0.15)  # room for labels
    axis.set(xlabel="natural accuracy, %", ylabel="accuracy under attack, %")
    data, net, budget, kind = _row(results[0])
    axis.set_title(f"{net}, {data}, budget {budget:,} {kind}", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _autoattack(results: Sequence[Results]) -> str:
    """Returns the label of AutoAttack, with the number of images if it is not all of them."""
    counts = {
        one["attacks"]["autoattack"]["attack"]["images"]
        for one in results
        if "autoattack" in one.get("attacks", {})
    }
    few = counts - {one["attack"]["images"] for one in results}
    return f"AutoAttack, {min(few):,} images" if few else "AutoAttack"


def _mean(runs: Sequence[Results], key: str) -> float:
    return 100 * mean(run["accuracy"][key] for run in runs)


def curves_picture(results: Sequence[Results], path: Path) -> None:
    """Draws accuracy over the epochs of training: a row of plots per data set, network and budget.

    The x axis is not time, because time depends on the machine and its load.

    Runs that differ in the seed alone form one line, their mean, with a band from the worst to the
    best of them. Each method has its own colour, and each line of a method its own line style. The
    legend names the settings that the lines of a row do not share.

    Args:
        results: runs that hold `history`. Its accuracies are of a few held-out images, so that they
            vary by some percentage points from epoch to epoch.
        path: .svg or .png to write.

    Raises:
        UserError: a method has more lines of one budget than there are line styles.
    """
    styles = ("-", "--", ":", "-.")
    methods = sorted({one["method"] for one in results})
    rows: dict[tuple, list[list[Results]]] = defaultdict(list)
    for runs in groups(results):
        rows[_row(runs[0])].append(runs)
    crowd = max(
        max(Counter(runs[0]["method"] for runs in lines).values()) for lines in rows.values()
    )
    if crowd > len(styles):
        raise UserError(
            f"{crowd} curves of one method and budget cannot be told apart: give a folder of at "
            f"most {len(styles)}, seeds not counted"
        )
    alike = len({data for data, *_ in rows}) == 1
    figure = Figure((11, 3.8 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, sharex="all" if alike else "row", squeeze=False)
    for axes, ((data, net, budget, kind), lines) in zip(grid, sorted(rows.items()), strict=True):
        seen: Counter[str] = Counter()
        names = _names([_curve_name(runs) for runs in lines])
        for name, runs in zip(names, lines, strict=True):
            how = runs[0]["method"]
            style: dict[str, Any] = {
                "color": COLORS[methods.index(how)],
                "linestyle": styles[seen[how]],
                "label": name if names.count(name) == 1 else f"{name}, at {commits(runs)}",
            }
            seen[how] += 1
            for axis, key in zip(axes, ("natural", "pgd"), strict=True):
                _curve(axis, runs, key, style)
        axes[0].legend(frameon=False, fontsize=8)
        axes[0].set(ylabel="natural accuracy, %", title=f"{net}, {data}, budget {budget:,} {kind}")
        axes[1].set(ylabel="PGD-10 accuracy, %")
    for axis in grid[-1] if alike else grid.flat:
        axis.set(xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def _row(one: Results) -> tuple[str, str, float, str]:
    """Returns what all curves of a row share: data set, network, budget and kind of cost."""
    return measured_on(one), network(one), one["budget"]["target"], one["budget"]["kind"]


def _curve(axis: Any, runs: list[Results], key: str, style: dict[str, Any]) -> None:
    """Draws the mean over the seeds for each epoch, with a band for their range."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for row in run["history"]:
            values[row["epoch"]].append(100 * row[key])
    epochs = sorted(values)
    axis.plot(epochs, [mean(values[epoch]) for epoch in epochs], marker="o", markersize=3, **style)
    if len(runs) > 1:
        low, high = ([side(values[epoch]) for epoch in epochs] for side in (min, max))
        axis.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _curve_name(runs: list[Results]) -> tuple[str, list[str]]:
    one, left = runs[0], mean(_left(run) for run in runs)
    return f"{method(one)}, {one['epochs']} epochs, {left:.3f} left", _setting(one)


def _setting(one: Results) -> list[str]:
    """Returns the settings that may name a line besides its method."""
    masks, eps = f"{settings(one)['granularity']} masks", f"eps {radius(one['attack']['epsilon'])}"
    return [masks, eps, defense(one), *recipe(one).split(", ")]


def _names(lines: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Returns the names of lines: each with those of its settings that not all lines share."""
    shared = set[str].intersection(*(set(rest) for _, rest in lines))
    return [", ".join([name, *(p for p in rest if p not in shared)]) for name, rest in lines]


def _left(results: Results) -> float:
    return results["cost"][f"{results['budget']['kind']}_ratio"]


def _save(figure: Any, path: Path) -> None:
    try:
        if path.suffix not in (".svg", ".png"):
            raise ValueError("a picture of another kind")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A fixed salt makes the ids within an .svg, and so the whole file, reproducible.
        with matplotlib.rc_context({"svg.hashsalt": "irp_jax"}):
            dated = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=150, metadata=dated)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path} ({error}): give a writable .svg or .png") from error


def cost_picture(report: Results, path: Path) -> None:
    """Draws the cost of an attack: seconds against one setting per plot, a line for each library.

    Args:
        report: the output of `python -m benchmarks.pgd --costs`.
        path: .svg or .png to write.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in report["costs"]:
        lines = panels.setdefault(one["varied"], {})
        lines.setdefault(one["side"], []).append((one["value"], one["seconds"]))
    figure = Figure((11, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    axes[0, 0].set_ylabel("seconds")
    for axis, (varied, lines) in zip(axes[0], panels.items(), strict=True):
        for side, points in lines.items():
            values, seconds = zip(*points, strict=True)
            ours = side == "irp_jax"
            axis.plot(
                values, seconds, "o-", label=side, markersize=3, linewidth=2.2 if ours else 1.0,
                color=INK["kept"] if ours else None,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel=varied)
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"PGD on {report['network']}", fontsize=10)
    _save(figure, path)


def adversarial_picture(
    natural: np.ndarray,
    adversarial: np.ndarray,
    before: Sequence[str],
    after: Sequence[str],
    path: Path,
) -> None:
    """Draws a grid of images: natural, adversarial and their difference, with the predictions.

    Args:
        natural: (N, H, W, C) in [0, 1], C 1 or 3.
        adversarial: the same shape.
        before: N predictions for the natural images.
        after: N predictions for the adversarial ones.
        path: .png or .svg to write.
    """
    change = adversarial - natural
    largest = np.maximum(np.abs(change).max(axis=(1, 2, 3), keepdims=True), 1e-6)
    rows = {
        "natural": natural,
        "adversarial": adversarial,
        "difference": 0.5 + change / largest / 2,
    }
    count = len(natural)
    figure = Figure((1.3 * count + 0.7, 4.4), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for row, (title, images) in enumerate(rows.items()):
        axes[row][0].set_ylabel(title)
        for column, axis in enumerate(axes[row]):
            axis.imshow(images[column], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row < 2:
                axis.set_title((before, after)[row][column], fontsize=9)
            else:
                axis.set_xlabel(f"x {0.5 / float(largest[column].item()):.0f}", fontsize=9)
    _save(figure, path)
