"""Plots show the values of the results."""

import copy

import pytest
from run_results import result

from irp_jax.errors import UserError
from irp_jax.report import plots


def _with(one, **settings):
    return {**one, "config": {**one["config"], **settings}}


def test_pictures_are_of_two_kinds(tmp_path):
    with pytest.raises(UserError, match=r"another kind\): give a writable \.svg or \.png"):
        plots.save(plots.run_picture(result(0, 0.9)), tmp_path / "run.gif")
    assert not list(tmp_path.iterdir())


def test_lines_of_held_out_images_say_so():
    held_out = _with(result(0, 0.9), evaluate_on="validation")
    figure = plots.budget_picture([held_out, result(0, 0.8)])
    lines = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert sorted(line.endswith("held out") for line in lines) == [False, True]


def test_the_trade_off_has_a_point_for_each_setting_and_joins_those_of_a_defense():
    runs = [result(0, 0.5), result(1, 0.7)]
    runs += [_with(result(0, 0.3), defense="gat", robustness_weight=w) for w in (5.0, 20.0)]
    for run, natural in zip(runs, (0.8, 0.9, 0.95, 0.75), strict=True):
        run["accuracy"] = {**run["accuracy"], "natural": natural}
    runs[-1]["accuracy"]["autoattack"] = 0.25
    for run in runs[2:]:
        run["defense"] = "gat"
    with pytest.raises(UserError, match="one data set, network and budget"):
        plots.tradeoff_picture([*runs, {**runs[0], "model": "vgg16"}])
    figure = plots.tradeoff_picture(runs)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert {"robustness weight 5", "robustness weight 20"} <= set(said)
    lines = [line.get_xydata().tolist() for line in figure.axes[0].get_lines()]
    seeds, gat, hollow = sorted(lines, key=lambda line: (-line[0][1], line))
    assert seeds == [pytest.approx([85, 60])]
    assert gat == [pytest.approx([75, 30]), pytest.approx([95, 30])]
    assert hollow == [pytest.approx([75, 25])]


def test_curves_are_named_by_what_they_do_not_share_and_seeds_are_one():
    deep = {**result(0, 0.9), "model": "resnet56"}
    clipped = _with(result(0, 0.7), clip=1.0)
    lucky = copy.deepcopy(result(1, 0.9))
    lucky["history"][0]["pgd"] = 0.5
    figure = plots.curves_picture([result(0, 0.9), lucky, clipped, deep])
    rows = [figure.axes[i : i + 2] for i in (0, 2)]
    assert [row[0].get_title().partition(",")[0] for row in rows] == ["resnet20", "resnet56"]
    named = [[text.get_text() for text in row[0].get_legend().get_texts()] for row in rows]
    usual = "lagrangian, 4 epochs, 0.160 left"
    assert named == [[usual, f"{usual}, clip 1"], [usual]]
    seeds, _ = rows[0][1].get_lines()
    assert seeds.get_ydata().tolist() == pytest.approx([40.0, 30.0])  # of 30 and 50, 30 and 30
    [band] = rows[0][1].collections
    corners = band.get_paths()[0].vertices
    assert corners.min(axis=0) == pytest.approx([1, 30]) and corners.max(axis=0)[1] == 50


def test_curves_that_nothing_else_tells_apart_are_named_by_commit():
    older = _with({**result(0, 0.9), "commit": "0123456789"}, unknown=1)
    figure = plots.curves_picture([older, {**result(0, 0.9), "commit": "abcdef0123"}])
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert sorted(name.split(", ")[-1] for name in named) == ["at 0123456", "at abcdef0"]


def test_a_line_of_budgets_is_of_runs_equally_long():
    longer = _with({**result(0, 0.95), "epochs": 9}, epochs=9)
    figure = plots.budget_picture([result(0, 0.9), longer, result(0, 0.5, budget=0.5)])
    lines = {bar.get_label(): len(bar.lines[0].get_xdata()) for bar in figure.axes[0].containers}
    assert lines == {"lagrangian, 4 epochs": 2, "lagrangian, 9 epochs": 1}


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_pictures_are_drawn(tmp_path, suffix):
    plots.save(plots.run_picture(result(0, 0.9)), tmp_path / "new" / f"run.{suffix}")
    runs = [result(0, 0.9), result(1, 0.8), result(0, 0.5, budget=0.5)]
    plots.save(plots.budget_picture(runs), tmp_path / f"budget.{suffix}")
    assert (tmp_path / "new" / f"run.{suffix}").stat().st_size > 5000
    assert (tmp_path / f"budget.{suffix}").stat().st_size > 5000
    plots.save(plots.curves_picture(runs), tmp_path / f"curves.{suffix}")
    assert (tmp_path / f"curves.{suffix}").stat().st_size > 5000
    other = {**result(0, 0.7), "dataset": "cifar10"}
    plots.save(plots.curves_picture([*runs, other]), tmp_path / f"two_sets.{suffix}")
    assert (tmp_path / f"two_sets.{suffix}").stat().st_size > 5000
    plots.save(plots.curves_picture(runs), tmp_path / f"again.{suffix}")
    again = (tmp_path / f"again.{suffix}").read_bytes()
    assert again == (tmp_path / f"curves.{suffix}").read_bytes()
    crowd = [_with(result(0, 0.9), learning_rate=rate) for rate in range(1, 30)]
    with pytest.raises(UserError, match="29 curves of one method"):
        plots.curves_picture(crowd)
    with pytest.raises(UserError, match="29 lines"):
        plots.budget_picture(crowd)
    plots.save(plots.budget_picture(crowd[:9]), tmp_path / f"nine.{suffix}")
    with pytest.raises(UserError, match="cannot write"):
        plots.save(plots.run_picture(copy.deepcopy(runs[0])), tmp_path / "picture.unknown")
