"""The facts of one run on the HTML page: its charts, tables, images and commands."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from irp_jax.config import radius, suited
from irp_jax.report.collect import Run
from irp_jax.report.page import charts
from irp_jax.report.page.cells import Cell, measurement, number, share
from irp_jax.report.page.images import grid
from irp_jax.report.page.svg import inline
from irp_jax.report.tables import Results


def details(run: Run, link: str) -> dict[str, Any]:
    one = run.results
    drawn: list[tuple[str, Markup]] = []
    if one["history"]:
        label = f"Accuracy and cost in {len(one['history'])} epochs. A table below has the values."
        figure = charts.training(one)
        drawn.append(("Training", Markup(inline(figure, f"{link}-training", label))))
    if one["layers"]:
        label = f"Kept size of {len(one['layers'])} layers. A table below has the numbers."
        figure = charts.layers(one)
        drawn.append(("Kept size of each layer", Markup(inline(figure, f"{link}-net", label))))
    curves = [place for place, later in enumerate(run.evaluations) if later.get("curve")]
    for place in curves:
        evaluation = run.evaluations[place]
        attack = evaluation["attack"]
        title = f"Robustness over eps: {attack['name']}, {attack['images']:,} images"
        text = inline(charts.robustness(evaluation), f"{link}-curve{place}", title)
        drawn.append((title, Markup(text)))
    return {
        "link": link,
        "name": run.name,
        "line": f"{one['model']} on {one['dataset']}, {one['method']}, "
        f"{100 * one['accuracy']['natural']:.2f} % natural, "
        f"{100 * one['accuracy']['pgd']:.2f} % PGD-10, "
        f"{100 * one['cost']['params_ratio']:.1f} % of the parameters",
        "charts": drawn,
        "accuracies": _accuracies(run),
        "costs": _costs(one),
        "layers": _layers(one),
        "history": history(one),
        "curves": [_curve(run, place) for place in curves],
        "examples": [grid(examples) for examples in run.examples],
        "settings": _settings(one),
        "environment": _facts(one.get("environment")),
        "commands": _commands(run),
    }


def _accuracies(run: Run) -> list[tuple[str, Cell, str]]:
    """Returns name and accuracy of each attack, and the settings of the measurement."""
    one, found = run.results, []
    for name, value in one["accuracy"].items():
        if isinstance(value, int | float):
            other = one.get("attacks", {}).get(name, {}).get("attack") or one["attack"]
            attack = one["attack"] if name in ("natural", "pgd", "pgd-last") else other
            shown = {"pgd": "PGD-10", "pgd-last": "PGD-10, last iterate"}.get(name, name)
            found.append((shown, share(one, f"accuracy.{name}"), measurement(name, attack)))
    for place, evaluation in enumerate(run.evaluations):
        for name in evaluation["accuracy"]:
            if name != "natural" and not evaluation.get("curve"):
                cell = share(_later(run), f"evaluations.{place}.accuracy.{name}")
                found.append((f"{name}, later", cell, measurement(name, evaluation["attack"])))
    return found


def _later(run: Run) -> dict[str, Any]:
    """Returns the evaluations of a run in the form that `number` reads."""
    return {"evaluations": list(run.evaluations)}


def _costs(one: Results) -> list[tuple[str, Cell, Cell, Cell]]:
    return [
        (name, number(one, f"cost.{key}"), number(one, f"cost.dense_{key}"),
         share(one, f"cost.{key}_ratio"))
        for key, name in (("macs", "MACs per image"), ("params", "parameters"))
    ]  # fmt: skip


def _layers(one: Results) -> list[list[Cell]]:
    keys = ("channels_out", "dense_channels_out", "macs", "dense_macs", "params", "dense_params")
    return [
        [Cell(str(row["layer"])), *(number(one, f"layers.{place}.{key}") for key in keys)]
        for place, row in enumerate(one["layers"])
    ]


def history(one: Results) -> list[list[Cell]]:
    return [
        [
            number(one, f"history.{place}.epoch"),
            share(one, f"history.{place}.natural"),
            share(one, f"history.{place}.pgd"),
            share(one, f"history.{place}.cost_ratio"),
            number(one, f"history.{place}.loss", 4),
        ]
        for place in range(len(one["history"]))
    ]


def _curve(run: Run, place: int) -> dict[str, Any]:
    """Returns name and rows of the curve of an evaluation of a run."""
    evaluation = run.evaluations[place]
    rows = [
        (radius(epsilon), share(_later(run), f"evaluations.{place}.curve.accuracy.{number_}"))
        for number_, epsilon in enumerate(evaluation["curve"]["epsilon"])
    ]
    return {"name": evaluation["attack"]["name"], "rows": rows}


def _settings(one: Results) -> list[tuple[str, str, bool]]:
    """Returns the settings of a run, and whether each differs from the default for its data."""
    usual = suited(str(one["dataset"]))
    return [
        (name, str(value), getattr(usual, name, value) != value)
        for name, value in sorted(one["config"].items())
        if value not in (None, "")
    ]


def _facts(environment: Any) -> list[tuple[str, str]]:
    if not isinstance(environment, Mapping):
        return []
    return [(str(name).replace("_", " "), str(value)) for name, value in environment.items()]


def _commands(run: Run) -> list[tuple[str, str]]:
    one = run.results
    attacks = one.get("attacks", {})
    everything = [("training", one)]
    everything += [(name, attacks[name]) for name in attacks]
    everything += [("evaluation", evaluation) for evaluation in run.evaluations]
    return [
        (f"{name}, commit {str(found.get('commit') or 'unknown')[:12]}", str(found["command"]))
        for name, found in everything
        if isinstance(found, Mapping) and found.get("command")
    ]
