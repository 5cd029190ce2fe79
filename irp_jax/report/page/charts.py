"""Draws the charts of the HTML page with matplotlib, one function for each.

A chart is as wide as the screen of a phone. Wider screens show several charts in a row. A method
has a colour and a marker, so that charts can be read without colours.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from irp_jax.config import PARENT, Config
from irp_jax.pruning import mask_rules
from irp_jax.report.page.svg import COLORS, STYLE
from irp_jax.report.tables import Results
from irp_jax.training.methods import METHODS

METHOD_STYLES = {
    "lagrangian": ("c0", "o"), "hinge": ("c1", "s"), "width": ("c2", "^"),
    "magnitude": ("c3", "D"), "admm": ("c4", "v"),
}  # fmt: skip
"""Method -> colour and marker."""

WIDTH = 4.6
"""Width of a chart in inches."""

TALLEST = 9.0
"""Largest height in inches of the chart of layers. With more layers, its rows are thinner."""


class Published(NamedTuple):
    """A published result: ResNet20 on CIFAR-10, channels pruned.

    Attributes:
        name: reference and number of parameters.
        params: number of parameters.
        accuracy: attack -> accuracy in [0, 1].
    """

    name: str
    params: float
    accuracy: dict[str, float]


PUBLISHED = (
    Published("Vemparala et al. 2021, 0.04M", 0.04e6, {"natural": 0.7073, "pgd": 0.3931}),
    Published("Vemparala et al. 2021, 0.16M", 0.16e6, {"natural": 0.7967, "pgd": 0.4322}),
)
"""Natural and PGD-10 accuracies of the paper. It has no AutoAttack accuracy."""

Point = tuple[str, Results]
"""(id of a run on the page, results of the run)."""


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorates a function that draws, so that it uses `STYLE`."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def _panel(
    height: float, *, left: float = 0.5, legend: int = 1, heights: Sequence[float] = (1,)
) -> tuple[Figure, list[Any]]:
    """Returns a figure and its axes, in one column.

    Margins are fixed, because computing them would take matplotlib longer than drawing the page.

    Args:
        height: of the figure in inches.
        left: left margin in inches.
        legend: number of legend lines below the axes.
        heights: relative heights of the axes.
    """
    figure = Figure((WIDTH, height))
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=heights,
        gridspec_kw={
            "left": left / WIDTH, "right": 1 - 0.08 / WIDTH, "top": 1 - 0.22 / height,
            "bottom": (0.5 + 0.19 * legend) / height, "hspace": 0.3,
        },
    )  # fmt: skip
    return figure, list(axes[:, 0])


@styled
def accuracy_by_cost(points: Sequence[Point], key: str, kind: str) -> Figure:
    """Draws accuracy over the cost of the compact network. Each point is a link to its run.

    Args:
        points: runs that have this accuracy, all of one network and data set.
        key: "natural", "pgd" or the name of another attack.
        kind: "params" or "macs".
    """
    methods = dict.fromkeys([*METHOD_STYLES, *(str(one["method"]) for _, one in points)])
    figure, (axis,) = _panel(3.4, legend=1 + (len({one["method"] for _, one in points}) > 3))
    for method in methods:
        mine = [(link, one) for link, one in points if one["method"] == method]
        if not mine:
            continue
        color, marker = METHOD_STYLES.get(method, ("ink", "P"))
        drawn = axis.scatter(
            [one["cost"][kind] for _, one in mine],
            [100 * one["accuracy"][key] for _, one in mine],
            s=34, marker=marker, facecolor=COLORS[color], edgecolor=COLORS["paper"],
            linewidth=0.5, label=method,
        )  # fmt: skip
        drawn.set_urls([f"#{link}" for link, _ in mine])
    rows = [row for row in published(points) if kind == "params" and key in row.accuracy]
    if rows:
        axis.scatter(
            [row.params for row in rows], [100 * row.accuracy[key] for row in rows], s=60,
            marker="*", facecolor="none", edgecolor=COLORS["ink"], linewidth=1, label="published",
        )  # fmt: skip
        for row in rows:
            axis.annotate(
                row.name.rpartition(" ")[2], (row.params, 100 * row.accuracy[key]), fontsize=8,
                xytext=(0, 6), textcoords="offset points", ha="center", va="bottom",
                color=COLORS["muted"],
            )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel("parameters left" if kind == "params" else "MACs per image left")
    axis.margins(x=0.12, y=0.14)
    low, high = axis.get_xlim()
    locator: Locator = LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,))
    if sum(low <= tick <= high for tick in locator.tick_values(low, high)) < 2:
        locator = MaxNLocator(4)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    figure.legend(loc="lower center", borderaxespad=0, ncols=3, handletextpad=0.2, columnspacing=1)
    return figure


def published(points: Sequence[Point]) -> tuple[Published, ...]:
    """Returns the published results if a run has the same network, data set and radius."""
    same = any(
        (one["model"], one["dataset"]) == ("resnet20", "cifar10")
        and abs(one["attack"]["epsilon"] - 8 / 255) < 1e-4
        for _, one in points
    )
    return PUBLISHED if same else ()


def short(count: float) -> str:
    """Returns a number as text with k, M or G: 40000 -> 40k."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.3g}"


@styled
def training(results: Results) -> Figure:
    """Draws accuracy over the epochs, and below it the cost and its target."""
    history = results["history"]
    epochs = [row["epoch"] for row in history]
    figure, (above, below) = _panel(4.2, heights=(3, 2))
    for key, name, color, style in (
        ("natural", "natural", "c0", "-"), ("pgd", "PGD-10", "c1", "--"),
    ):  # fmt: skip
        above.plot(
            epochs, [100 * row[key] for row in history], style, color=COLORS[color], label=name,
            linewidth=1.6,
        )  # fmt: skip
    above.set_ylim(0, 100)
    above.set_title("accuracy, %", loc="left", fontsize=9, pad=3)
    below.plot(
        epochs, [100 * row["cost_ratio"] for row in history], "-", color=COLORS["c2"],
        label="cost", linewidth=1.6,
    )  # fmt: skip
    goal = target(results)
    if goal is not None:
        below.plot(
            epochs, 100 * goal, ":", color=COLORS["ink"], label="target", linewidth=1.6,
        )  # fmt: skip
    frozen = next((row["epoch"] for row in history if row["frozen"]), None)
    if frozen is not None and frozen > epochs[0]:
        for axis in (above, below):
            axis.axvline(frozen - 1, color=COLORS["muted"], linewidth=0.8)
        # If the line is near the right edge, its text is to its left.
        late = frozen - epochs[0] > 0.6 * (epochs[-1] - epochs[0])
        above.annotate(
            "masks frozen", (frozen - 1, 3), xytext=(-4 if late else 4, 0), fontsize=8,
            textcoords="offset points", ha="right" if late else "left", color=COLORS["muted"],
        )  # fmt: skip
    below.set(xlabel="epoch", ylim=(0, 104))
    kind = {"macs": "MACs", "params": "parameters", "latency": "latency"}[results["budget"]["kind"]]
    below.set_title(f"{kind}, % of the dense network", loc="left", fontsize=9, pad=3)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="lower center", borderaxespad=0, ncols=4, handlelength=1.8, columnspacing=1.2)
    return figure


def target(results: Results) -> np.ndarray | None:
    """Returns the target of the cost after each epoch, as a share of the dense cost.

    Returns None if it is not known.
    """
    config, kind = results["config"], results["budget"]["kind"]
    names = set(Config.__dataclass_fields__)
    try:
        settings = Config(**{name: value for name, value in config.items() if name in names})
        method, epochs = METHODS[results["method"]], np.array(
            [row["epoch"] for row in results["history"]], np.float32
        )  # fmt: skip
        goal = results["budget"]["target"]
        share = goal if goal <= 1 else goal / results["cost"][f"dense_{kind}"]
        stop = method.freeze_epoch(settings)
        if results["method"] == "lagrangian":
            start = settings.prune_start * settings.epochs
            if settings.teacher == PARENT:
                start = method.stages(settings)[1]
            fine = 1000  # steps per epoch, because the schedule takes integers
            planned = mask_rules.sparsity_schedule(share, round(start * fine), stop * fine)
            return np.asarray(planned(epochs * fine))
        if results["method"] == "hinge":  # its loss applies from the first step on
            stop = 0
        return np.where(epochs <= stop, 1.0, share) if stop else np.full(len(epochs), share)
    except (KeyError, TypeError, ValueError):  # settings of another version
        return None


@styled
def layers(results: Results) -> Figure:
    """Draws the kept and the dense number of output channels of each layer, first layer on top.

    With weight granularity, all channels are kept, so numbers of weights are drawn instead.
    """
    rows = results["layers"]
    by_weight = results["config"].get("granularity") == "weight"
    kept, dense = [
        np.array([row[f"{prefix}{'params' if by_weight else 'channels_out'}"] for row in rows])
        for prefix in ("", "dense_")
    ]
    height = min(0.19, (TALLEST - 0.9) / len(rows))
    size = min(8.5, 72 * height * 0.65)
    letters = max(len(str(row["layer"])) for row in rows)
    left = min(2.0, 0.15 + 0.58 * letters * max(size, 4.5) / 72)
    figure, (axis,) = _panel(0.9 + height * len(rows), left=left)
    places = np.arange(len(rows))
    # matplotlib draws lines and text several times faster than bars and tick labels.
    thick = 72 * 0.8 * height
    axis.hlines(places, 0, dense, COLORS["dense"], linewidth=thick, label="dense")
    axis.hlines(places, 0, kept, COLORS["c0"], linewidth=thick, label="kept")
    gap = 0.015 * max(dense)
    every = max(1, round(4.5 / size))  # names are skipped where they would be too small
    for place, (row, few, all_) in enumerate(zip(rows, kept, dense, strict=True)):
        if place % every == 0:
            axis.text(
                -gap, place, str(row["layer"]), ha="right", va="center", fontsize=max(size, 4.5)
            )
        if size > 4:
            text = f"{few / max(1, all_):.1%}" if by_weight else f"{few}/{all_}"
            axis.text(all_ + gap, place, text, va="center", fontsize=size)
    axis.set_yticks([])
    axis.set(xlabel="weights" if by_weight else "output channels", xlim=(0, 1.16 * max(dense)))
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if by_weight:
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    figure.legend(loc="lower center", borderaxespad=0, ncols=2)
    return figure


@styled
def robustness(evaluation: Results) -> Figure:
    """Draws accuracy over the radius of the attack.

    Args:
        evaluation: the output of an evaluation with a `curve`.
    """
    curve = evaluation["curve"]
    figure, (axis,) = _panel(2.9, legend=0)
    axis.plot(
        [255 * epsilon for epsilon in curve["epsilon"]],
        [100 * accuracy for accuracy in curve["accuracy"]],
        "o-", color=COLORS["c1"], markersize=4,
    )  # fmt: skip
    axis.set(xlabel="eps x 255", ylim=(0, 100))
    axis.set_title("accuracy, %", loc="left", fontsize=9, pad=3)
    return figure
