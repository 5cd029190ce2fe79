"""Size of the HTML page of results, and the time in which a browser opens it.

    python -m benchmarks.page
    python -m benchmarks.page --runs=40 --deepest

It needs Chromium, and measures the page of runs in results/.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from irp_jax import files, machine
from irp_jax.cli.common import main, publishable
from irp_jax.cli.flags import parse
from irp_jax.errors import UserError
from irp_jax.report import checking
from irp_jax.report.page import html

RESULTS = Path(__file__).parents[1] / "results"

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")

TIMER = """<script>addEventListener("load", () => {
  document.body.getBoundingClientRect();
  document.title = "opened in " + performance.now();
});</script>"""
"""Notes the time from the start of the navigation until everything is loaded and laid out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the size of a page of results, and how long Chromium takes to open it."""

    runs: int = 40
    """Number of runs on the page."""
    deepest: bool = False
    """Take the runs of the networks with the most layers, instead of the first in results/."""
    rounds: int = 7
    """Number of times that the page is opened."""
    out: str | None = None
    """A file for the figures."""


def page(arguments: list[str]) -> None:
    """Writes the page, opens it, and prints size and times."""
    options = parse(Options, arguments, "python -m benchmarks.page")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError("no Chromium is found: install it")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        runs = _runs(options)
        layers = [len(each["layers"]) for each in runs]
        html.page(runs, path)
        size = path.stat().st_size
        path.write_text(path.read_text().replace("</body>", f"{TIMER}</body>"))
        seconds = [_opened(browser, path, Path(folder, "profile")) for _ in range(options.rounds)]
    figures: dict[str, Any] = {
        "runs": len(runs),
        "layers": {"fewest": min(layers), "most": max(layers)},
        "megabytes": round(size / 1e6, 3),
        "seconds_to_open": {
            "median": round(median(seconds), 3), "all": [round(each, 3) for each in seconds],
        },
        "environment": machine.describe(),
        "command": publishable("python -m benchmarks.page", arguments),
        "commit": files.commit(),
    }  # fmt: skip
    if options.out is not None:
        files.write_json(Path(options.out), figures)
    print(json.dumps({key: figures[key] for key in list(figures)[:4]}, indent=2))


def _runs(options: Options) -> list[dict[str, Any]]:
    """Returns the results of the runs for the page."""
    found = (files.read_json(path) for path in sorted(RESULTS.rglob("*.json")))
    runs = [
        each
        for each in found
        if isinstance(each, dict) and {"config", "accuracy", "layers"} <= set(each)
        and not checking.problem(each)
    ]  # fmt: skip
    if options.deepest:
        runs.sort(key=lambda each: -len(each["layers"]))
    return runs[: options.runs]


def _opened(browser: str, path: Path, profile: Path) -> float:
    """Returns the seconds until the page is loaded and laid out."""
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
        "--window-size=1440,900", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    title = re.search(r"opened in ([0-9.]+)", shown)
    if title is None:
        raise UserError("Chromium did not load the page: update it")
    return float(title[1]) / 1000


if __name__ == "__main__":
    main(page)
