"""Accuracy over the epochs of training."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from irp_jax.errors import UserError
from irp_jax.report.plots.lines import cost_left, line_names, setting, subject
from irp_jax.report.plots.style import COLORS
from irp_jax.report.tables import Results, commits, groups, method


def curves_picture(results: Sequence[Results]) -> Figure:
    """Draws accuracy over the epochs of training: a row of plots per data set, network and budget.

    The x axis is not time, because time depends on the machine and its load.

    Runs that differ in the seed alone form one line, their mean, with a band from the worst to the
    best of them. Each method has its own colour, and each line of a method its own line style. The
    legend names the settings that the lines of a row do not share.

    Args:
        results: runs that hold `history`. Its accuracies are of a few held-out images, so that they
            vary by some percentage points from epoch to epoch.

    Raises:
        UserError: a method has more lines of one budget than there are line styles.
    """
    styles = ("-", "--", ":", "-.")
    methods = sorted({one["method"] for one in results})
    rows: dict[tuple, list[list[Results]]] = defaultdict(list)
    for runs in groups(results):
        rows[subject(runs[0])].append(runs)
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
        names = line_names([_curve_name(runs) for runs in lines])
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
    return figure


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
    one, left = runs[0], mean(cost_left(run) for run in runs)
    return f"{method(one)}, {one['epochs']} epochs, {left:.3f} left", setting(one)
