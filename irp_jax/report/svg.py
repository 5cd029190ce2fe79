"""Turns a figure of matplotlib into an SVG that is part of an HTML page.

The SVG takes its colours from CSS variables, so that the page decides between light and dark. Its
text is text in the font of the page.
"""

import io
import re
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

CODE = "#1e57{:02x}"
"""Stands for a CSS variable while matplotlib draws."""

VARIABLES = ("ink", "muted", "line", "dense", "c0", "c1", "c2", "c3", "c4", "paper")
"""Names of the CSS variables that a figure may use, without the two dashes."""

COLORS = {name: CODE.format(number) for number, name in enumerate(VARIABLES)}
"""CSS variable -> the colour to give to matplotlib."""

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
"""Settings of matplotlib for figures on a page."""


def inline(figure: Figure, name: str, label: str) -> str:
    """Returns the SVG element of a figure.

    Args:
        figure: drawn under `STYLE`, with `COLORS` alone.
        name: differs from the names of the other figures on the page.
        label: says what the figure shows, for those who do not see it.
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
    # Only ids that something refers to are kept. All figures of a page need different ones.
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', text))
    text = re.sub(
        r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text
    )
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#(?!run-)', f'href="#{name}-', text)
    # A tenth of a point is finer than a pixel. Text, which is outside of tags, stays as it is.
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d)\d+", r"\1", tag[0]), text)
    for variable, code in COLORS.items():
        text = text.replace(code, f"var(--{variable})")
    # The style sheet of the page says how text looks, and matplotlib repeats it for each word.
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = text.replace("; fill: var(--ink)", "")
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r">\s+<", "><", text)
    return re.sub(r"\s*\n\s*", " ", text).strip()
