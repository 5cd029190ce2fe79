"""The time of an attack, here and in other libraries."""

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from irp_jax.report.plots.style import INK
from irp_jax.report.tables import Results


def cost_picture(report: Results) -> Figure:
    """Draws the cost of an attack: seconds against one setting per plot, a line for each library.

    Args:
        report: the output of `python -m benchmarks.pgd --costs`.
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
    return figure
