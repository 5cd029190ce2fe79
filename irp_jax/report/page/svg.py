"""Converts a matplotlib figure to an SVG element of an HTML page.

Its colours are CSS variables, so that the page can have a light and a dark theme. Its text is
stored as text and has the font of the page.
"""

import io
import re
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

CODE = "#1e57{:02x}"
"""Placeholder colour for a CSS variable. It contains the number of the variable."""

VARIABLES = ("ink", "muted", "line", "dense", "c0", "c1", "c2", "c3", "c4", "paper")
"""Names of the CSS variables that a figure may use, without the leading dashes."""

COLORS = {name: CODE.format(number) for number, name in enumerate(VARIABLES)}
"""CSS variable -> its placeholder colour, for matplotlib."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "irp_jax", "path.simplify": True, "font.size": 10,
    "axes.edgecolor": COLORS["muted"], "axes.labelcolor": COLORS["ink"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": COLORS["line"], "grid.linewidth": 0.6,
    "xtick.color": COLORS["muted"], "ytick.color": COLORS["muted"],
    "xtick.labelcolor": COLORS["ink"], "ytick.labelcolor": COLORS["ink"],
    "text.color": COLORS["ink"], "legend.frameon": False, "legend.fontsize": 9,
    "xtick.bottom": False, "ytick.left": False, "figure.facecolor": "none",
    "axes.facecolor": "none",
}  # fmt: skip
"""matplotlib settings for figures on a page."""


def inline(figure: Figure, name: str, label: str) -> str:
    """Returns the SVG element of a figure.

    Args:
        figure: a figure that was drawn with `STYLE` and has no colours but `COLORS`.
        name: unique among the figures of the page.
        label: description of the figure for screen readers.
    """
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    head = (
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} '
        f'{height}" style="max-width:{float(width) * 4 / 3:.0f}px" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    text = head + text[text.index(">") + 1 :]
    # Ids without a reference are removed. The others get the name, to be unique on the page.
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
    text = re.sub(
        r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text
    )
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#(?!run-)', f'href="#{name}-', text)
    # Coordinates are cut to tenths of a point, less than a pixel. Text outside tags is kept.
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d)\d+", r"\1", tag[0]), text)
    for variable, code in COLORS.items():
        text = text.replace(code, f"var(--{variable})")
    # matplotlib repeats the style of text for each word. The style sheet of the page sets it.
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = text.replace("; fill: var(--ink)", "")
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r">\s+<", "><", text)
    return re.sub(r"\s*\n\s*", " ", text).strip()
