"""The HTML page has the numbers of its results, and shows what can be shown of bad ones."""

import copy
import html.parser
import json
import re
from pathlib import Path

import browser
import numpy as np
import pytest
from run_results import result

import irp_jax
from irp_jax.cli import report as command
from irp_jax.errors import UserError
from irp_jax.report.collect import collect
from irp_jax.report.page import charts
from irp_jax.report.page import html as pages

RESULTS = Path(__file__).parent.parent / "results"
RUNS = ("tables/*seed0*", "comparison/*0.04M*hinge*", "trials_weights/*seed0-3*", "quickstart/*")
"""Runs with three attacks, without AutoAttack, with weight masks, and with an evaluation."""


def evaluated(folder):
    """Makes the folder of a run with a curve over the radius and adversarial images."""
    folder.mkdir()
    one = {**result(0, 0.9), "network_sha256": "ab", "environment": {"jax": "0.1"}}
    (folder / "results.json").write_text(json.dumps(one))
    curve = {
        "attack": {"name": "pgd", "norm": "linf", "epsilon": 0.2, "images": 360},
        "accuracy": {"natural": 0.99}, "network_sha256": "ab", "command": "bin/evaluate",
        "curve": {"epsilon": [0, 0.1, 0.2], "accuracy": [0.99, 0.9, 0.4]},
    }  # fmt: skip
    (folder / "curve.json").write_text(json.dumps(curve))
    images = np.full((3, 4, 4, 1), 0.5, np.float32)
    np.savez(
        folder / "found.npz", images=images, natural=np.full((3, 4, 4, 1), 100, np.uint8),
        labels=np.array([0, 1, 1]), predictions=np.array([1, 1, 0]),
        broken_by=np.array(["pgd", "", "pgd"]), class_names=np.array(["<cat>", "dog"]),
    )  # fmt: skip
    return one


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns a page and the runs that it shows."""
    folder = tmp_path_factory.mktemp("page")
    evaluated(folder / "mine")
    places = [path for pattern in RUNS for path in sorted(RESULTS.glob(pattern))]
    path = folder / "page.html"
    return path, pages.page([*places, folder / "mine"], path)


def test_the_python_interface_writes_the_page_and_names_what_is_not_on_it(tmp_path):
    (tmp_path / "damaged.json").write_text("{")
    notes = irp_jax.html_report([result(0, 0.9), tmp_path / "damaged.json"], tmp_path / "a.html")
    assert len(notes) == 1 and "damaged.json" in notes[0]
    assert "<html" in (tmp_path / "a.html").read_text()
    with pytest.raises(UserError, match=r"\.html"):
        irp_jax.html_report(result(0, 0.9), tmp_path / "a.txt")


class Numbers(html.parser.HTMLParser):
    """Collects (link of the run, path in its results, scale, text) of each number of a page."""

    def __init__(self, text):
        super().__init__()
        self.found, self._run, self._cell = [], None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "tr" and "data-run" in given:
            self._run = given["data-run"]
        if tag == "details" and given.get("class") == "run":
            self._run = given["id"]
        if "data-path" in given:
            self._cell = given["data-path"], float(given.get("data-scale", 1))

    def handle_data(self, text):
        if self._cell:
            self.found.append((self._run, *self._cell, text))
            self._cell = None


def test_every_number_is_that_of_the_json(written):
    path, found = written
    numbers = Numbers(path.read_text()).found
    assert {link for link, *_ in numbers} == {f"run-{n + 1}" for n in range(len(found.runs))}
    for link, keys, scale, text in numbers:
        run = found.runs[int(link.removeprefix("run-")) - 1]
        value = {**run.results, "evaluations": list(run.evaluations)}
        for key in keys.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        shown = re.match(r"[\d.,]+", text)[0].replace(",", "")
        digits = len(shown.partition(".")[2])
        assert float(shown) == pytest.approx(value * scale, abs=0.5000001 * 10**-digits), keys
    shown = {keys for _, keys, *_ in numbers}
    assert {"accuracy.natural", "accuracy.autoattack", "cost.macs", "layers.0.params"} <= shown
    assert {"evaluations.0.curve.accuracy.2", "evaluations.0.accuracy.pgd"} <= shown
    assert {f"history.59.{key}" for key in ("natural", "pgd", "cost_ratio", "loss")} <= shown


@pytest.mark.slow
def test_the_page_needs_no_network_and_has_curves_and_images_of_a_run(written):
    path, found = written
    assert not found.notes
    [later] = [run for run in found.runs if run.evaluations and run.results["method"] != "hinge"][
        :1
    ]
    assert later.evaluations[0]["attack"]["steps"] == 50, "of results/quickstart, by its facts"
    text = path.read_text()
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", text) + re.findall(r"url\(([^)]*)", text)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert re.search(r"Robustness over eps.*?<td[^>]*>40\.00<", text, re.DOTALL)
    assert text.count("data:image/png") == 6 and "&lt;cat&gt; &rarr; dog" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for published in ("70.73", "39.31", "79.67", "43.22"):
        assert f">{published}<" in text
    assert "#1e57" not in text, "a colour that the page does not choose"


def test_the_planned_cost_is_the_one_that_the_runs_followed():
    for path in RESULTS.glob("tables/*.json"):
        one = json.loads(path.read_text())
        actual = [row["cost_ratio"] for row in one["history"]]
        np.testing.assert_allclose(charts.target(one), actual, atol=0.02)
    other = {**result(0, 0.9), "method": "magnitude"}
    other["config"] = {**other["config"], "method": "magnitude", "epochs": 4, "pretraining": 0.25}
    assert charts.target(other).tolist() == pytest.approx([1.0, 0.16])


@pytest.mark.slow
def test_what_can_be_shown_is_shown_and_the_rest_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    page = tmp_path / "page.html"
    with pytest.raises(UserError, match=r"no results to show \(no results in .*empty\)"):
        command.report([str(tmp_path / "empty"), f"--html={page}"])
    with pytest.raises(UserError, match=r"ends in \.html"):
        pages.page([result(0, 0.9)], tmp_path / "page.svg")
    assert not page.exists()

    odd = tmp_path / "odd"
    odd.mkdir()
    older, broken, other = (copy.deepcopy(result(0, 0.9)) for _ in range(3))
    del older["config"]["clip"], older["rollbacks"], older["layers"]
    older["history"] = [{"epoch": 1}]
    broken["accuracy"]["natural"] = "high"
    other |= {"dataset": "<script>alert(1)</script>", "method": "newer"}
    for name, content in (("older", older), ("broken", broken), ("other", other), ("list", [])):
        (odd / f"{name}.json").write_text(json.dumps(content))
    (odd / "damaged.json").write_text('{"config": ')
    (odd / "lacking.json").write_text('{"config": {}, "accuracy": {"natural": 1.0}}')
    (odd / "images.npz").write_text("nothing")
    command.report([str(odd), str(tmp_path / "empty"), str(tmp_path / "no"), f"--html={page}"])
    out, err = capsys.readouterr()
    assert out.startswith(f"{page}: 2 runs")
    notes = err.splitlines()
    assert all(line.startswith("note: ") for line in notes)
    for words in (
        r"damaged.json cannot be read", r"lacking.json: lacks attack, budget", r"no file.*no$",
        r"broken.json: accuracy.natural must be a number, got 'high'", r"no results in .*empty",
        r"older is of another version: it has no setting clip; its history is not as expected",
        r"not results of a run, left out: list.json", r"images.npz cannot be read",
    ):  # fmt: skip
        assert sum(bool(re.search(words, line)) for line in notes) == 1, words
    assert len(notes) == 8
    text = page.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    assert text.count('<details class="run"') == 2


@pytest.mark.slow
def test_runs_of_one_name_and_results_from_python_are_told_apart():
    found = collect([result(0, 0.9), result(1, 0.8)])
    assert [run.name for run in found.runs] == ["resnet20-digits (1)", "resnet20-digits (2)"]


DRAWN = """
(() => {
  document.querySelectorAll("details").forEach((one) => (one.open = true));
  const bad = [];
  for (const chart of document.querySelectorAll(".chart")) {
    if (chart.closest("[hidden]")) continue;
    const name = chart.getAttribute("aria-label"), around = chart.getBoundingClientRect();
    if (around.width < 200 || around.height < 60) bad.push(`${name}: not drawn`);
    const boxes = [...chart.querySelectorAll("text")].map((one) => [one, one.getBoundingClientRect()]);
    for (const [one, box] of boxes) {
      if (box.left < around.left - 1 || box.right > around.right + 1 ||
          box.top < around.top - 1 || box.bottom > around.bottom + 1)
        bad.push(`${name}: ${one.textContent} is cut`);
      for (const [other, its] of boxes) {
        const wide = Math.min(box.right, its.right) - Math.max(box.left, its.left);
        const high = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
        if (one !== other && wide > 1 && high > 4) bad.push(`${name}: ${one.textContent} overlaps`);
      }
    }
  }
  if (document.documentElement.scrollWidth > innerWidth) bad.push("the page is too wide");
  return bad;
})()
"""  # noqa: E501

USED = """
(() => {
  const rows = () => [...document.querySelectorAll("#table tbody tr")];
  const head = [...document.querySelectorAll("#table thead th")].find(
    (one) => one.textContent === "natural %");
  const place = [...head.parentNode.children].indexOf(head);
  const column = () => rows().map((row) => Number(row.cells[place].textContent));
  head.querySelector("button").click();
  const up = column(), upwards = head.getAttribute("aria-sort");
  head.querySelector("button").click();
  const down = column(), downwards = head.getAttribute("aria-sort");
  const words = document.getElementById("words");
  words.value = "HINGE 0.04M";
  words.dispatchEvent(new Event("input", {bubbles: true}));
  const left = rows().filter((row) => row.offsetParent).map((row) => row.cells[0].textContent);
  const points = [...document.querySelectorAll(".chart a")].filter(
    (point) => point.style.display !== "none").map((point) => point.getAttribute("xlink:href"));
  const hinge = rows().find((row) => row.offsetParent).dataset.run;
  words.value = "";
  words.dispatchEvent(new Event("input", {bubbles: true}));
  rows().slice(0, 2).forEach((row) => row.querySelector("input").click());
  const count = (chosen) => document.querySelectorAll(chosen).length;
  const links = rows().slice(0, 2).map((row) => `#${row.dataset.run} > .charts .chart`);
  const copies = count("#compared .chart"), originals = count(links.join());
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  location.hash = "#run-2";
  return new Promise((resolve) => setTimeout(() => resolve({
    up, down, upwards, downwards, left, copies, originals, hinge, points: [...new Set(points)],
    twice: ids.length - new Set(ids).size, count: document.getElementById("count").textContent,
    compared: document.querySelectorAll("#compared tbody tr").length,
    open: document.getElementById("run-2").open,
  }), 100));
})()
"""


@pytest.mark.slow
@pytest.mark.skipif(browser.found() is None, reason="no Chromium")
def test_the_page_in_a_browser(written):
    path, found = written
    with browser.browser() as tab:
        for width in (390, 1440):
            for scheme in ("light", "dark"):
                tab.open(path, width, scheme=scheme)
                paper = tab.run("getComputedStyle(document.body).backgroundColor")
                assert (paper == "rgb(255, 255, 255)") is (scheme == "light")
                assert tab.run(DRAWN) == []
            used = tab.run(USED)
            natural = [round(100 * run.results["accuracy"]["natural"], 2) for run in found.runs]
            assert used["up"] == sorted(natural) == used["down"][::-1]
            assert (used["upwards"], used["downwards"]) == ("ascending", "descending")
            [left] = used["left"]
            assert "hinge" in left and used["points"] == [f"#{used['hinge']}"]
            assert used["copies"] == used["originals"] >= 4
            assert used["twice"] == 0 and used["compared"] > 30
            assert used["open"] and used["count"] == f"{len(natural)} of {len(natural)} runs"
        assert tab.problems == []
