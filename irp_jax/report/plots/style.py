"""Colours and markers of plots, and how a plot is written to a file.

Pyplot is not used, so that the backend of a notebook is not changed.
"""

from pathlib import Path
from typing import Any

import matplotlib

from irp_jax.errors import UserError

COLORS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
"""Colours of lines, used in this order."""

MARKERS = "os"
"""Markers of lines: the second one once all colours were used."""

INK = {
    "dense": "#c9ced6",
    "kept": "#1f6feb",
    "natural": "#1f6feb",
    "pgd": "#d1242f",
    "cost": "#57606a",
}


def save(figure: Any, path: Path) -> None:
    """Writes a figure to an .svg or .png file.

    Raises:
        UserError: the file cannot be written, or is of another kind.
    """
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
