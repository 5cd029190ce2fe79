"""Tables show the values of the results."""

import copy
import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from run_results import ROW, result

from irp_jax.cli import report as command
from irp_jax.cli.common import main
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.report import tables
from irp_jax.report.console import fitting, terminal, timing
from irp_jax.report.console.terminal import Terminal, show_results
from irp_jax.training.plan import Plan

RESULTS = Path(__file__).parent.parent / "results"


def test_seeds_are_averaged_and_their_range_is_shown():
    runs = [result(1, 0.92), result(0, 0.90), result(0, 0.5, budget=0.5)]
    first, _ = tables.groups(runs)
    assert [r["seed"] for r in first] == [0, 1]
    titles, (averaged, alone) = tables.lines(runs)
    shown = titles.index("PGD-10 %")
    assert (averaged[shown], alone[shown]) == ("91.0 (90.0-92.0)", "50.0")
    assert "autoattack %" not in titles
    [table] = fitting.summary(runs, 1000)
    assert table.row_count == 2
    assert table.title.startswith("resnet20, digits: method lagrangian; ")
    assert "model" not in [column.header for column in table.columns]


def words(cells):
    """Returns the parts of cells that may be on lines of their own: between commas or brackets."""
    return {part.strip(" ,") for cell in cells for part in re.split(r"\n|, | (?=\()", cell)}


@pytest.mark.parametrize("folder", ["tables", "comparison", "defenses", "operations"])
@pytest.mark.parametrize("width", [80, 100, 120, 250])
def test_tables_fit_their_terminal_with_no_word_broken_and_say_what_they_leave_out(folder, width):
    runs = [json.loads(path.read_text()) for path in (RESULTS / folder).glob("*.json")]
    console = Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True)
    show_results(console, runs)
    shown = console.file.getvalue()
    assert all(len(line) <= width for line in shown.splitlines())
    whole = {line.strip() for line in shown.replace("┃", "│").replace("│", "\n").splitlines()}
    for table, found in zip(
        fitting.summary(runs, width), tables.sections(runs).values(), strict=True
    ):
        titles, rows = tables.lines(found)
        headers = [str(column.header) for column in table.columns]
        left_out = [t for t in fitting.LEAST_WANTED if t in titles and t not in headers]
        assert left_out == [
            t for t in fitting.LEAST_WANTED if t in (table.caption or "").split(": ")[-1]
        ]
        assert set(headers) <= whole
        # In a narrow terminal all settings are in one cell, `run`.
        shown_as_such = [title for title in headers if title != "run"]
        cells = [row[titles.index(title)] for title in shown_as_such for row in rows]
        for column in table.columns:
            cells += column.cells if column.header == "run" else []
        assert words(cells) <= words(whole)
    if (folder, width) == ("comparison", 80):
        assert "epochs" in whole  # otherwise two rows look alike


@pytest.mark.parametrize(
    ("second", "shown"), [(0.32549, "32.5"), (0.32560, "32.5 (32.5-32.6)"), (0.32451, "32.5")]
)
def test_a_range_whose_ends_are_written_alike_is_left_out(second, shown):
    titles, [line] = tables.lines([result(0, 0.32452), result(1, second)])
    assert line[titles.index("PGD-10 %")] == shown


def test_a_name_in_square_brackets_is_shown_as_it_is(capsys):
    names = ("my[red].npz", "my[1].npz", "[/b].npz")
    runs = [{**result(0, 0.9), "dataset": name} for name in names]
    show_results(terminal.plain_console(), runs)
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


def test_settings_too_many_for_a_terminal_are_in_one_cell():
    found = [json.loads(path.read_text()) for path in (RESULTS / "cifar10").glob("*.json")]
    console = Console(file=io.StringIO(), width=80)
    show_results(console, [one for one in found if "config" in one])
    shown = console.file.getvalue()
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert all(
        f" {word} " in shown for word in ("run", "no guard", "eps 8/255", "runs 1", "n-fgsm")
    )


def test_a_terminal_table_has_the_recipe_only_where_it_tells_lines_apart():
    one, other = result(0, 0.9), result(0, 0.8)
    other["config"] = {**other["config"], "label_smoothing": 0.1}
    headers = [[c.header for c in fitting.summary(runs, 1000)[0].columns] for runs in (
        [one, other], [one, result(0, 0.8, budget=0.5)],
    )]  # fmt: skip
    assert ["recipe" in found for found in headers] == [True, False]


def test_what_every_line_has_in_common_is_said_once():
    said, _, head, _, *rows, end = tables.markdown(
        [result(0, 0.9), result(0, 0.5, budget=0.5)]
    ).split("\n")
    assert said.startswith("In every line: data digits; model resnet20; method lagrangian; ")
    assert "budget" not in said and head.startswith("| budget | natural % | PGD-10 % |")
    assert [row.split(" | ")[0] for row in rows] == ["| 0.16", "| 0.5"] and end == ""
    alone = tables.markdown([result(0, 0.9)])
    assert alone.startswith("| data | model |") and alone.count("\n") == 3


def test_each_data_set_and_model_has_a_table_of_its_own():
    other = result(0, 0.8) | {"model": "resnet8"}
    written = tables.markdown([result(0, 0.9), other, result(0, 0.5, budget=0.5)])
    first, second = written.split("\n\n**resnet8, digits**\n\n")
    assert first.startswith("**resnet20, digits**\n\nIn every line: method lagrangian; ")
    assert [row.split(" | ")[0] for row in first.split("\n")[-2:]] == ["| 0.16", "| 0.5"]
    assert second.startswith("| method | masks | budget |") and second.count("\n") == 3


def test_the_recipe_names_settings_that_are_unusual_for_its_data():
    one = result(0, 0.9)
    one["config"] |= {"validation": 0.2, "guard": False, "train_images": 500}
    usual = "cyclic 0.2, batch 128"
    assert tables.recipe(one) == usual + ", 500 images, 20% held out, no guard"
    one["config"] |= {"validation": 0.1, "guard": True, "train_images": 0}  # of digits
    assert tables.recipe(one) == usual
    assert tables.recipe(one | {"dataset": "cifar10"}) == usual + ", 10% held out"
    one["config"] |= {"ema": 0.999, "weight_decay": 5e-4, "label_smoothing": 0.1}
    assert tables.recipe(one) == usual + ", ema 0.999, label smoothing 0.1"


def test_a_wider_start_and_an_unusual_sparsity_schedule_are_named():
    one = result(0, 0.9)
    assert (tables.network(one), tables.method(one)) == ("resnet20", "lagrangian")
    one["config"] |= {"width": 1.5, "prune_start": 0.1, "prune_stop": 0.6}
    assert (tables.network(one), tables.method(one)) == ("resnet20 x 1.5", "lagrangian, 10% to 60%")
    assert tables.method(one | {"method": "width"}) == "width"
    one["config"]["channels"] = "stage1=12"
    first = tables.method(one | {"method": "width"})
    one["config"]["channels"] = "stage1=13"
    second = tables.method(one | {"method": "width"})
    assert first.startswith("width, given channels (") and first[:23] == second[:23] != first[:22]
    assert first != second


def test_unusual_settings_of_a_method_are_shown_with_it_alone():
    one, recipe = result(0, 0.9) | {"method": "admm"}, tables.recipe(result(0, 0.9))
    one["config"] |= {"admm_rho": 0.005, "restart_rate": 0.1, "hinge_strength": 10.0}
    assert tables.method(one) == "admm, rho 0.005, restart rate 0.1"
    assert tables.method(one | {"method": "lagrangian"}) == "lagrangian"
    assert tables.method(one | {"method": "hinge"}) == "hinge, hinge strength 10"
    assert tables.recipe(one) == recipe


def test_a_run_that_was_clipped_on_the_way_has_a_line_of_its_own():
    clipped = result(1, 0.92)
    clipped["rollbacks"] = [{"epoch": 9, "back_to": 8, "lowest": 0.6, "loss": 3.9, "clip": 1.0}]
    titles, rows = tables.lines([result(0, 0.9), clipped])
    assert [row[titles.index("recipe")] for row in rows] == [
        "cyclic 0.2, batch 128", "cyclic 0.2, batch 128, then clip 1",
    ]  # fmt: skip
    assert tables.defense(clipped) == tables.defense(result(0, 0.9))


def test_points_lost_since_the_best_epoch_are_counted():
    faded = result(0, 0.5)
    epochs = [(0.7, False), (0.55, True), (0.5, True)]
    faded["history"] = [{**ROW, "pgd": pgd, "frozen": frozen} for pgd, frozen in epochs]
    titles, [row] = tables.lines([faded])
    assert row[titles.index("lost")] == "5.0"
    assert row[titles.index("eps")] == "0.1"


def test_without_images_held_out_nothing_is_said_to_be_lost():
    """Without held-out images the history is measured on training images."""
    faded = result(0, 0.9)
    faded["history"] = [{"pgd": pgd, "frozen": True} for pgd in (0.4, 0.3)]
    titles, [row] = tables.lines([faded])
    assert row[titles.index("lost")] == "10.0"
    faded["config"]["validation"] = 0.0
    titles, [row] = tables.lines([faded])
    assert row[titles.index("lost")] == ""


def test_lines_that_nothing_else_tells_apart_are_told_apart_by_commit():
    older = {**result(0, 0.8), "commit": "0123456789+"}
    older["config"] = {**older["config"], "gone": True}  # a setting that no longer exists
    other = result(0, 0.7, budget=0.5)
    titles, rows = tables.lines([result(0, 0.9) | {"commit": "fedcba9876"}, older, other])
    assert {row[titles.index("commit")] for row in rows} == {"0123456+", "fedcba9", ""}
    assert "commit" not in tables.lines([older, other])[0]


def test_figures_of_held_out_images_say_so():
    held_out = result(0, 0.9)
    held_out["config"]["evaluate_on"] = "validation"
    both = [held_out, result(0, 0.8)]
    titles, rows = tables.lines(both)
    assert sorted(row[titles.index("data")] for row in rows) == ["digits", "digits, held out"]


def test_attacks_that_some_runs_lack_have_a_column_with_the_number_of_images():
    attacked = result(0, 0.9)
    for name, accuracy, images in (("autoattack", 0.85, 360), ("pgd-50-10", 0.88, 100)):
        attacked["accuracy"][name] = accuracy
        attacked.setdefault("attacks", {})[name] = {"attack": {"images": images}}
    titles, (first, second) = tables.lines([attacked, result(0, 0.5, budget=0.5)])
    cells = dict(zip(titles, zip(first, second, strict=True), strict=True))
    assert cells["autoattack %"] == ("85.0", "")
    assert cells["pgd-50-10 %"] == ("88.0, 100 images", "")


@pytest.mark.parametrize("live", [True, False])
def test_the_terminal_shows_a_bar_on_a_screen_and_plain_lines_in_a_file(live):
    text = io.StringIO()
    terminal = Terminal(Console(file=text, force_terminal=live, width=200))
    plan = Plan(
        epochs=2, steps_per_epoch=300, segments=3, freeze_epoch=1, limit=16, target=0.16, ratio=0.16
    )
    terminal.begin(Config(), plan, 0)
    for _ in range(3):
        metrics = {"loss": 1.0, "train_accuracy": 0.5, "cost_ratio": 0.3}
        terminal.progress(100, 50.0, metrics)
    terminal.epoch(ROW)
    terminal.attacking("pgd", 6)
    terminal.evaluating(5, 10, 3)
    terminal.end(result(0, 0.9))
    shown = text.getvalue()
    assert ("\x1b" in shown) is live
    assert "minutes to go" in shown
    assert "91.0%" not in shown
    for words in ("50.0%", "frozen", "stem", "99.00%", "90.00%"):
        assert words in shown


def test_a_benchmark_becomes_a_table_and_a_picture(tmp_path, capsys):
    side = {"accuracy": {"pgd": 0.5}, "total": 12.0, "slices": [7.0, 5.0]}
    network = {
        "model": "resnet8", "dataset": "digits", "defense": "none", "macs_ratio": 1.0,
        "images": 10, "epsilon": 0.1, "natural": 0.9, "irp_jax": side, "other": side,
    }  # fmt: skip
    file, page = tmp_path / "bench.json", tmp_path / "page.md"
    file.write_text(json.dumps({"networks": [network]}))
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    command.report([str(file), f"--into={page}"])
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert text.count("| 50.0 | 12 | 7 + 5 |") == 2
    page.write_text(text + "The table ends at <!-- /bench -->.\n")
    command.report([str(file), f"--into={page}"])
    assert page.read_text() == text + "The table ends at <!-- /bench -->.\n"
    page.write_bytes(text.replace("after", "after\r").encode())
    command.report([str(file), f"--into={page}"])
    assert page.read_bytes() == text.replace("after", "after\r").encode()
    lost = "<!-- bench -->\nmine\n" + text
    page.write_text(lost)
    with pytest.raises(UserError, match="twice before"):
        command.report([str(file), f"--into={page}"])
    assert page.read_text() == lost
    costs = [
        {"varied": v, "value": n, "side": s, "seconds": float(n)}
        for v in ("images", "steps") for n in (1, 2) for s in ("irp_jax", "other")
    ]  # fmt: skip
    file.write_text(json.dumps({"costs": costs, "network": "net"}))
    command.report([str(file), f"--plot={tmp_path / 'costs.svg'}"])
    assert (tmp_path / "costs.svg").stat().st_size > 1000
    with pytest.raises(UserError, match="--plot"):
        command.report([str(file)])


def test_results_that_lack_something_are_named(tmp_path):
    unrecorded = {key: value for key, value in result(0, 0.9).items() if key != "history"}
    (tmp_path / "one.json").write_text(json.dumps(unrecorded))
    with pytest.raises(UserError, match="leave out --plot"):
        command.report([str(tmp_path / "one.json"), f"--plot={tmp_path / 'one.svg'}"])


def of_an_older_version():
    older = result(1, 0.5)
    older["kept"], older["retreats"] = older.pop("keep_counts"), older.pop("rollbacks")
    older["config"]["regularity"] = older["config"].pop("granularity")
    return older | {"method": "priced"}


@pytest.mark.parametrize(
    "unreadable",
    [
        of_an_older_version(),
        result(0, 0.9) | {"accuracy": {"natural": 1.0}},
        result(0, 0.9) | {"accuracy": None},
        result(0, 0.9) | {"budget": 0.16},
    ],
)
def test_files_of_other_versions_are_left_out(tmp_path, capsys, monkeypatch, unreadable):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(unreadable))
    monkeypatch.setattr(sys, "argv", ["bin/report", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main(command.report)
    assert stopped.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert str(other) in said and "another version" in said
    (tmp_path / "this.json").write_text(json.dumps(result(0, 0.9)))
    command.report([str(tmp_path), "--markdown"])
    shown, told = capsys.readouterr()
    assert shown == tables.markdown([result(0, 0.9)])
    (line,) = told.splitlines()
    assert line.startswith(f"{other} is of another version")


def test_settings_that_later_versions_add_have_their_defaults():
    one = result(0, 0.9)
    one["config"] |= dataclasses.asdict(Config())
    before = tables.markdown([one])
    for name in one["config"]:
        older = copy.deepcopy(one)
        del older["config"][name]
        assert tables.markdown([older]) == before
        assert len(tables.groups([older, {**one, "seed": 1}])) == 1, name


def test_an_evaluation_names_its_split():
    """An evaluation has no config."""
    one = {key: value for key, value in result(0, 0.9).items() if key != "config"}
    assert terminal.result_table(one).title == "resnet20 on digits, seed 0"
    held_out = {**one, "attack": {**one["attack"], "split": "validation"}}
    assert terminal.result_table(held_out).title == "resnet20 on digits, held out, seed 0"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_closing_table_fits_its_terminal_and_has_every_figure_once(width):
    autoattack = ("apgd-ce", "apgd-t", "fab-t", "square")
    found = result(0, 0.9) | {
        "model": "resnet20", "dataset": "cifar10", "wall_time_s": 2000.4,
        "accuracy": {"natural": 0.512, **dict.fromkeys(autoattack, 0.3), "autoattack": 0.29},
        "attack": {"name": "autoattack", "norm": "linf", "epsilon": 8 / 255, "images": 1000},
        "seconds": dict.fromkeys(autoattack, 5.0),
        "cost": {"macs": 6.54e6, "macs_ratio": 0.16, "params": 43_210, "params_ratio": 0.158},
    }  # fmt: skip
    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False)
    for table in (terminal.attack_table, terminal.result_table):
        console.print(table(found))
    shown = text.getvalue()
    assert all(len(line) <= width for line in shown.splitlines()) and "…" not in shown
    for figure in ("51.20%", "29.00%", "6.54M (16.00%)", "43,210 (15.80%)", "2000 s"):
        assert figure in shown
    assert [shown.count(f" {name} ") for name in autoattack] == [1] * 4


def test_times_of_a_step_become_a_table(tmp_path, capsys):
    command.report([str(RESULTS / "bench_train.json")])
    shown = capsys.readouterr().out
    report = json.loads((RESULTS / "bench_train.json").read_text())
    for name in ("dense", "compact", "torch"):
        assert timing.TITLES[name] in shown
        assert f"{report['speedup'][name]:.2f}" in shown
    with pytest.raises(UserError, match="--plot"):
        command.report([str(RESULTS / "bench_train.json"), f"--plot={tmp_path / 'times.svg'}"])
    (tmp_path / "bad.json").write_text('{"seconds_per_step": {"dense": [1.0]}}')
    with pytest.raises(UserError, match="not a complete benchmark file"):
        command.report([str(tmp_path / "bad.json")])
    with pytest.raises(UserError, match="no file or folder"):
        command.report([str(tmp_path / "none.json")])
    with pytest.raises(UserError, match="--into"):
        command.report([str(RESULTS / "bench_train.json"), "--markdown"])


def test_a_run_that_changed_its_defense_says_so():
    runs = [json.loads(path.read_text()) for path in (RESULTS / "guard").glob("*.json")]
    for run in runs:
        assert tables.defense(run) == ("fgsm, then pgd-3" if run["config"]["guard"] else "fgsm")
    assert {(run["dataset"], run["method"], run["config"]["guard"]) for run in runs} == {
        (dataset, method, guard)
        for dataset, method in (("digits", "width"), ("digits", "lagrangian"), ("cifar10", "width"))
        for guard in (True, False)
    }
