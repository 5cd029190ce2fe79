"""The page can be used by keyboard, with a screen reader, and with weak eyes."""

import html.parser
import itertools
import os
import re
from collections import Counter
from pathlib import Path

import browser
import pytest
from outcome_files import two_runs

from irp_jax.report.page import html as pages

ROOT = Path(__file__).parent.parent
AXE = os.environ.get("AXE_CORE")
"""Path of axe.min.js of the npm package axe-core, if it is installed."""

EMPTY = {"meta", "link", "input", "img", "br"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns a page with all parts but unfinished runs."""
    folder = tmp_path_factory.mktemp("page")
    two_runs(folder)
    places = [
        *sorted(ROOT.glob("results/comparison/*hinge*"))[:1],
        *ROOT.glob("results/quickstart/*"),
    ]
    pages.page([*places, folder / "run1", folder / "run2"], folder / "page.html")
    return folder / "page.html"


class Elements(html.parser.HTMLParser):
    """Collects the elements of a page: (tag, attributes, ancestors, text within)."""

    def __init__(self, text):
        super().__init__()
        self.all, self._open = [], []
        self.feed(text)
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag, attributes):
        one = (tag, dict(attributes), [other[0] for other in self._open], [])
        self.all.append(one)
        if tag not in EMPTY:
            self._open.append(one)

    def handle_startendtag(self, tag, attributes):
        self.all.append((tag, dict(attributes), [other[0] for other in self._open], []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, text):
        for one in self._open:
            one[3].append(text)

    def named(self, *tags):
        return [(given, parents, "".join(text).strip())
                for tag, given, parents, text in self.all if tag in tags]  # fmt: skip


def test_every_part_has_a_name(written):
    found = Elements(written.read_text())
    assert "lang" in found.named("html")[0][0] and found.named("title")[0][2]
    charts = found.named("svg")
    assert len(charts) > 10
    assert all(given["role"] == "img" and len(given["aria-label"]) > 20 for given, *_ in charts)
    assert all(given["alt"] for given, *_ in found.named("img")) and found.named("img")
    assert all(text and given["scope"] in ("col", "row") for given, _, text in found.named("th"))
    assert len(found.named("table")) == len(found.named("caption"))
    for given, parents, text in found.named("input", "select", "button", "progress"):
        assert "label" in parents or given.get("aria-label") or text, given
    regions = [given["aria-label"] for given, *_ in found.named("div") if "role" in given]
    ids = [given["id"] for _, given, *_ in found.all if "id" in given]
    names = Counter([*regions, *ids])
    assert not [name for name, count in names.items() if count > 1]
    sections = {given["aria-labelledby"] for given, *_ in found.named("section")}
    assert sections <= set(ids) and len(found.named("main")) == 1
    assert all(given["tabindex"] == "0" for given, *_ in found.named("div") if "role" in given)
    headings = [int(tag[1]) for tag, *_ in found.all if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(later <= now + 1 for now, later in itertools.pairwise(headings))


def luminance(color):
    """Relative luminance of #rrggbb, as in the definition of WCAG 2."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    dark, light = sorted(luminance(color) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


def test_colours_have_enough_contrast():
    css = (ROOT / "irp_jax" / "report" / "page" / "page.css").read_text()
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    for colors in (light, light | dark):
        for back in ("paper", "raised"):
            for text in ("ink", "muted", "link"):
                assert contrast(colors[text], colors[back]) >= 4.5, (text, back)
        for line in ("c0", "c1", "c2", "c3", "c4", "muted"):  # WCAG 1.4.11 asks for 3 in charts
            assert contrast(colors[line], colors["paper"]) >= 3, line
        assert contrast(colors["c0"], colors["dense"]) >= 3


FAULTS = """
axe.run().then((found) => found.violations.map(
  (one) => `${one.impact}: ${one.help}: ${one.nodes.map((node) => node.html.slice(0, 200))}`))
"""


@pytest.mark.slow
@pytest.mark.skipif(browser.found() is None or not AXE, reason="no Chromium or no AXE_CORE")
def test_axe_finds_nothing(written):
    with browser.browser() as tab:
        for width in (390, 1440):
            for scheme in ("light", "dark"):
                tab.open(written, width, scheme=scheme)
                tab.run(Path(AXE).read_text() + "; 0")
                assert tab.run(FAULTS) == []
                tab.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
                tab.run("document.querySelectorAll('#table input').forEach((one) => one.click())")
                assert tab.run(FAULTS) == []
        assert tab.problems == []
