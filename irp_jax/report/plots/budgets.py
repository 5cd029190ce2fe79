"""Accuracy against the cost left."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from irp_jax.errors import UserError
from irp_jax.report.plots.lines import cost_left, line_names, setting
from irp_jax.report.plots.style import COLORS, MARKERS
from irp_jax.report.tables import Results, groups, measured_on, method, network

KEY_WITHIN, LINES_AT_MOST = 6, 20
"""Most lines with the legend inside the plot, and most lines that can be told apart."""


def budget_picture(results: Sequence[Results]) -> Figure:
    """Draws accuracy against the cost left. Runs that differ in the budget alone form one line.

    Args:
        results: the runs; seeds are averaged, and their range is drawn as an error bar.

    Raises:
        UserError: there are more lines than can be told apart.
    """
    lines: dict[tuple[str, ...], list[list[Results]]] = defaultdict(list)
    for runs in groups(results):
        one = runs[0]
        where = (network(one), f"of {one['budget']['kind']}", measured_on(one))
        lines[method(one), *setting(one), *where, f"{one['epochs']} epochs"].append(runs)
    if len(lines) > LINES_AT_MOST:
        raise UserError(
            f"{len(lines)} lines cannot be told apart: give a folder of runs that differ less"
        )
    below = 0.0 if len(lines) <= KEY_WITHIN else 0.2 * len(lines)  # inches
    figure = Figure((11, 3.8 + below), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    names = line_names([(name, rest) for name, *rest in lines])
    for axis, (key, label) in zip(
        axes, (("natural", "natural accuracy, %"), ("pgd", "PGD-10 accuracy, %")), strict=True
    ):
        for number, (name, sets) in enumerate(zip(names, lines.values(), strict=True)):
            x = [mean(cost_left(r) for r in runs) for runs in sets]
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
    return figure
