"""Cells of the tables of the HTML page. A cell knows which number of the results it shows."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from irp_jax.config import radius
from irp_jax.report.tables import Results


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: the text of the cell.
        path: path of the number in the results, keys joined by dots; empty for text.
        scale: factor from the number in the results to the number in the cell.
        key: number to sort the column by; None to sort by the text.
    """

    text: str
    path: str = ""
    scale: float = 1
    key: float | None = None


def number(
    results: Mapping[str, Any], path: str, digits: int | None = None, scale: float = 1
) -> Cell:
    """Returns the cell for a number in the results; an empty cell if there is no such number."""
    value: Any = results
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value.get(key)
        if value is None:
            return Cell("")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value))
    shown = value * scale
    text = f"{shown:,}" if digits is None else f"{shown:,.{digits}f}"
    return Cell(text, path, scale, shown)


def share(results: Mapping[str, Any], path: str) -> Cell:
    """Returns the cell for a share in the results, shown in percent."""
    return number(results, path, 2, 100)


def text_of(of: Any, results: Results) -> str:
    """Returns the text that a function of `tables` gives for a run; a dash if it fails."""
    try:
        return str(of(results))
    except Exception:  # settings of another version may have any type
        return "-"


def measurement(name: str, attack: Mapping[str, Any]) -> str:
    """Returns images, radius, steps and restarts of the attack that an accuracy is of."""
    parts = [f"{attack['images']:,} images"]
    if name != "natural":
        parts.append(f"{attack.get('norm', 'linf')} eps {radius(attack['epsilon'])}")
        counts = [key for key in ("steps", "restarts") if attack.get(key, 1) != 1]
        parts += [f"{attack[key]} {key}" for key in counts]
    return ", ".join(parts)
