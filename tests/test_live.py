"""A run is followed from its first epoch to its results, by the page and in the terminal."""

import dataclasses
import io
import json
import urllib.error
import urllib.request

import pytest
from rich.console import Console
from run_results import result

from irp_jax.cli import report as command
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.report.page import html, live


def row(epoch):
    return {"epoch": epoch, "natural": 0.5, "pgd": 0.25, "cost_ratio": 1 / epoch, "frozen": False,
            "loss": 2.0}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Returns the folder of a run of four epochs, after the first. A line is half written."""
    folder = tmp_path / "mine"
    folder.mkdir()
    said = {"settings": dataclasses.asdict(Config(epochs=4)), "identity": {}, "target": 0.25}
    (folder / "config.json").write_text(json.dumps(said))
    (folder / ".lock").touch()
    (folder / "metrics.jsonl").write_text(json.dumps(row(1)) + '\n{"epoch": ')
    return folder


def get(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.read().decode()


def test_the_page_follows_a_run(run):
    with live.serve([run.parent]) as address:
        page, before = get(address), get(address + "stamp")
        assert page.count("1 of 4 epochs") == 1 and "<svg" in page
        assert get(address + "stamp") == before
        (run / "metrics.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in (1, 2)))
        assert get(address + "stamp") != before
        assert "2 of 4 epochs" in get(address)
        (run / "results.json").write_text(json.dumps(result(0, 0.9)))
        page = get(address)
        assert "of 4 epochs" not in page and page.count('<details class="run"') == 1
        for path, host in (("", "else.where"), ("", "else.where:80"), ("etc", "localhost:1")):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(address + path, Host=host)
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(UserError), live.serve([run], port):
            pass
    with pytest.raises(UserError), live.serve([run], 70_000):
        pass
    with live.serve([run], port):
        pass
    for flags in (["--port=8000"], ["--follow", "--markdown"]):
        with pytest.raises(UserError, match="--follow"):
            command.report([str(run.parent), *flags])


def test_lines_off_a_screen(run, monkeypatch):
    output = io.StringIO()
    looks = iter(range(3))

    def wait(seconds):
        look = next(looks, None)
        if look == 0:
            with open(run / "metrics.jsonl", "w") as file:
                file.writelines(json.dumps(row(n)) + "\n" for n in (1, 2))
        elif look == 1:
            (run / "results.json").write_text(json.dumps(result(0, 0.9)))
        elif look is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(live.time, "sleep", wait)
    with pytest.raises(KeyboardInterrupt):
        live.follow([run], Console(file=output, width=200))
    first, second, last = output.getvalue().splitlines()
    assert "epoch 1 of 4" in first and "epoch 2 of 4" in second and "finished" in last


def test_a_file_shows_an_unfinished_run(run, tmp_path):
    found = html.page(run, tmp_path / "page.html")
    assert [one.epochs for one in found.unfinished] == [1] and not found.runs
    text = (tmp_path / "page.html").read_text()
    assert "fetch" not in text and "1 of 4 epochs" in text
    (run / "config.json").write_text('{"settings": {}}')
    with pytest.raises(UserError, match="not finished and cannot be read"):
        html.page(run, tmp_path / "other.html")
