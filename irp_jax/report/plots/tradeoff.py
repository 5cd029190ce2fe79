"""Natural accuracy against accuracy under attack."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from matplotlib.figure import Figure

from irp_jax.errors import UserError
from irp_jax.report.plots.lines import line_names, setting, subject
from irp_jax.report.plots.style import COLORS
from irp_jax.report.tables import Results, defense, groups, method


def tradeoff_picture(results: Sequence[Results]) -> Figure:
    """Draws natural accuracy against accuracy under attack: one point for each set of seeds.

    Points of one defense are joined in the order of their natural accuracy. Each is labelled with
    the settings that the points do not share. PGD-10 accuracy has a filled marker. AutoAttack
    accuracy, where it was measured, has a hollow marker.

    Args:
        results: the runs, of one data set, network and budget; seeds are averaged.

    Raises:
        UserError: the runs are of several data sets, networks or budgets.
    """
    if len({subject(one) for one in results}) > 1:
        raise UserError(
            "natural and robust accuracy can be compared at one data set, network and budget: give "
            "a folder of such runs"
        )
    sets = groups(results)
    names = line_names([("", [method(runs[0]), *setting(runs[0])]) for runs in sets])
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
    data, net, budget, kind = subject(results[0])
    axis.set_title(f"{net}, {data}, budget {budget:,} {kind}", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return figure


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
