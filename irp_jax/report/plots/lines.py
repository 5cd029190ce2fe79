"""The names of lines in plots: what a line has that the others have not."""

from collections.abc import Sequence

from irp_jax.config import radius
from irp_jax.report.tables import Results, defense, measured_on, network, recipe, settings


def line_names(lines: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Returns the names of lines: each with those of its settings that not all lines share."""
    shared = set[str].intersection(*(set(rest) for _, rest in lines))
    return [", ".join([name, *(p for p in rest if p not in shared)]) for name, rest in lines]


def setting(one: Results) -> list[str]:
    """Returns the settings that may name a line besides its method."""
    masks, eps = f"{settings(one)['granularity']} masks", f"eps {radius(one['attack']['epsilon'])}"
    return [masks, eps, defense(one), *recipe(one).split(", ")]


def subject(one: Results) -> tuple[str, str, float, str]:
    """Returns what runs must share to be compared: data set, network, budget and kind of cost."""
    return measured_on(one), network(one), one["budget"]["target"], one["budget"]["kind"]


def cost_left(results: Results) -> float:
    """Returns the share of the cost that is left."""
    return results["cost"][f"{results['budget']['kind']}_ratio"]
