"""Results with any wrong value are left out with a line, or shown; nothing else happens."""

import copy
import json
import math
from pathlib import Path

import pytest
from run_results import result

from irp_jax.errors import UserError
from irp_jax.report import checking, tables
from irp_jax.report.collect import collect
from irp_jax.report.page import html
from irp_jax.report.page.run_table import table

RESULTS = Path(__file__).parent.parent / "results"
ODD = (None, [1], {"a": None}, "x", -1, math.nan, 10**400)
ATTACKED = {
    "attacks": {"autoattack": {"attack": {"name": "autoattack", "epsilon": 0.1, "images": 100}}},
    "accuracy": {"natural": 0.99, "pgd": 0.9, "autoattack": 0.8}, "commit": "abc", "command": "bin",
    "environment": {"platform": "cpu", "cpu_count": 2}, "network_sha256": "ab",
}  # fmt: skip


def places(value, path=()):
    """Yields the path of every value in nested dicts and lists; of a list, only the first item."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(
        value, list) else ()  # fmt: skip
    for key, inner in items:
        yield from places(inner, (*path, key))


def with_odd_values():
    """Yields results of which one value is wrong, and the path of that value."""
    whole = result(0, 0.9) | ATTACKED
    for path in places(whole):
        for value in ODD:
            odd = copy.deepcopy(whole)
            inner = odd
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            yield odd, path


def test_a_wrong_value_anywhere():
    good, left_out, count = result(1, 0.8), 0, 0
    for number, (odd, path) in enumerate(with_odd_values()):
        if number % 6 > 1:
            continue
        count += 1
        found = collect([good, odd])
        assert len(found.runs) + len(found.notes) >= 2, path
        assert all("\n" not in note for note in found.notes)
        left_out += len(found.runs) == 1
        table(found.runs)
        if not checking.problem(odd) and checking.is_readable(odd):
            assert tables.markdown([good, odd]), path
    assert 0.1 < left_out / count < 0.9


@pytest.mark.slow
def test_the_page_with_a_wrong_value_anywhere():
    for number, (odd, path) in enumerate(with_odd_values()):
        if number % 7 == 0:  # charts take time
            assert html.render(collect([odd])) if collect([odd]).runs else True, path


@pytest.mark.slow
def test_forty_runs_are_a_small_page(tmp_path):
    runs = sorted((RESULTS / "digits").glob("*.json"))[:40]
    assert len(html.page(runs, tmp_path / "page.html").runs) == 40
    assert (tmp_path / "page.html").stat().st_size <= 3e6


def test_all_recorded_results_can_be_shown():
    runs = [json.loads(path.read_text()) for path in RESULTS.rglob("*.json")]
    runs = [one for one in runs if isinstance(one, dict) and {"config", "accuracy"} <= set(one)]
    assert len(runs) > 200
    for one in runs:
        assert checking.problem(one) == "" and checking.is_readable(one)
        assert checking.rows(one, "history") and checking.rows(one, "layers")


def test_the_terminal_shows_what_can_be_shown(tmp_path, capsys):
    from irp_jax.cli.report import report

    (tmp_path / "damaged.json").write_text('{"config": ')
    (tmp_path / "bad.json").write_text(json.dumps(result(0, 0.9) | {"epochs": "x"}))
    with pytest.raises(UserError, match=r"bad\.json.*and 1 more"):
        report([str(tmp_path)])
    (tmp_path / "good.json").write_text(json.dumps(result(0, 0.9)))
    report([str(tmp_path), "--markdown"])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3 and len(err.splitlines()) == 2
