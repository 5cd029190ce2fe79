"""The rows of a table of results, and tables in Markdown for the README."""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from statistics import mean
from typing import Any

from irp_jax.config import AVERAGE, PARENT, SETTINGS_OF, Config, parse_budget, radius, suited
from irp_jax.training.defenses import MANY_STEPS

Results = dict[str, Any]


def groups(results: Iterable[Results]) -> list[list[Results]]:
    """Groups runs that differ in the seed alone, in a stable order.

    Where a seed occurs twice, the runs of each commit are a group of their own.
    """
    found: dict[tuple, list[Results]] = defaultdict(list)
    for one in results:
        found[_sort_key(one)].append(one)
    grouped = []
    for key in sorted(found):
        runs = sorted(found[key], key=lambda run: run["seed"])
        if len({run["seed"] for run in runs}) == len(runs):
            grouped.append(runs)
            continue
        by_commit: dict[str, list[Results]] = defaultdict(list)
        for run in runs:
            by_commit[str(run.get("commit"))].append(run)
        grouped += by_commit.values()
    return grouped


def _sort_key(one: Results) -> tuple:
    """Returns the sort key of a run, without the seed. Data set, model and radius come first."""
    config = {key: value for key, value in settings(one).items() if key != "seed"}
    return (
        one["dataset"], network(one), one["attack"]["epsilon"], one["budget"]["kind"],
        parse_budget(config["budget"]), method(one), config["granularity"], defense(one),
        recipe(one), json.dumps(config, sort_keys=True),
    )  # fmt: skip


USUAL = dataclasses.asdict(Config())
"""Values of settings that are not in the results: a later version added them, or they are empty."""


def settings(one: Results) -> dict[str, Any]:
    """Returns all settings of a run."""
    return USUAL | one["config"]


def measured_on(one: Results) -> str:
    """Returns the data set, with a note if the accuracies are of held-out, not of test images."""
    # An evaluation has no config. It names its split if that is not the test split.
    split = one["attack"].get("split", (USUAL | one.get("config", {}))["evaluate_on"])
    held_out = split == "validation"
    return f"{one['dataset']}, held out" if held_out else one["dataset"]


def network(one: Results) -> str:
    """Returns the model, with its initial width and its activation where they are not default."""
    width, activation = settings(one)["width"], settings(one)["activation"]
    wider = "" if width == 1.0 else f" x {width:g}"
    return one["model"] + wider + ("" if activation == "relu" else f", {activation}")


def method(one: Results) -> str:
    """Returns the method and those of its own settings that are not the defaults.

    For `lagrangian` these include the fractions of training at which pruning starts and stops.
    """
    config, usual = settings(one), suited(one["dataset"])
    if one["method"] == "lagrangian":
        when = (config["prune_start"], config["prune_stop"])
        moved = when != (usual.prune_start, usual.prune_stop)
        schedule = f", {when[0]:.0%} to {when[1]:.0%}" if moved else ""
        anew = ", new weights" if config["reinit"] else ""
        own = ("spread", "restart_rate") if config["teacher"] == PARENT else ("spread",)
        return one["method"] + schedule + _non_default(one, own) + anew
    if channels := config["channels"]:
        digest = hashlib.sha256(channels.encode()).hexdigest()[:4]
        return f"{one['method']}, given channels ({digest})"
    return one["method"] + _non_default(one, SETTINGS_OF["method"].get(one["method"], ()))


def defense(one: Results) -> str:
    """Returns the defense of a run, and the last one if the guard switched to a stronger one.

    The number of attack steps follows the name where the defense takes several.
    """
    config = settings(one)
    changes = [event for event in one["rollbacks"] if "from" in event]
    names = SETTINGS_OF["defense"].get(config["defense"], ())
    own = _non_default(one, (name for name in names if name != STEPS))
    if changes:
        return f"{_with_steps(*changes[0]['from'])}{own}, then {_with_steps(*changes[-1]['to'])}"
    return _with_steps(one["defense"], config[STEPS]) + own


STEPS = "attack_steps"
"""The setting that is appended to the name of a defense."""

RARE = ("ema", "weight_decay", "label_smoothing", "cutout")
"""Settings named in a recipe where they differ from the defaults of the data set."""


def _non_default(one: Results, names: Iterable[str]) -> str:
    usual = suited(one["dataset"])
    return "".join(
        f", {name.removeprefix('admm_').replace('_', ' ')} {settings(one)[name]:g}"
        for name in names
        if settings(one)[name] != getattr(usual, name)
    )


def _with_steps(name: str, steps: int) -> str:
    return f"{name}-{steps}" if name in MANY_STEPS else name


def recipe(one: Results) -> str:
    """Returns learning rate, batch size, warm-up of the radius and non-default settings."""
    config = settings(one)
    rate = f"{config['schedule']} {config['learning_rate']:g}"
    warm_up = config["epsilon_warmup"]
    grown = f", radius over {warm_up:.0%}" if warm_up else ""
    some = f", {config['train_images']:,} images" if config["train_images"] else ""
    share = config["validation"]
    held_out = f", {share:.0%} held out" if share != suited(one["dataset"]).validation else ""
    guard = "" if config["guard"] else ", no guard"
    clip = f", clip {config['clip']:g}" if config["clip"] else ""
    for event in one["rollbacks"]:
        if "clip" in event:  # clipping began where the run diverged
            clip = f", then clip {event['clip']:g}"
    rounded = ""
    if config["quantize"]:
        rounded = f", {config['quantize']} from {config['quantize_start']:.0%}"
    batch = f"batch {config['batch_size']}"
    return f"{rate}, {batch}{grown}{some}{held_out}{guard}{clip}{rounded}" + (
        _non_default(one, RARE) + _teacher(one)
    )


def _teacher(one: Results) -> str:
    """Returns the teacher of a run, if it had one, with its weight and number of views."""
    config = settings(one)
    if not (teacher := config["teacher"]):
        return ""
    digest = one.get("identity", {}).get("teacher_sha256", "")[:4]
    who = teacher if teacher in (PARENT, AVERAGE) else f"a saved network ({digest})"
    views = f", {config['teacher_views']} views" if teacher != AVERAGE else ""
    return f", taught by {who} ({config['teacher_weight']:g}{views})"


def _spread(values: Iterable[float], digits: int, scale: float = 1.0) -> str:
    """Returns the mean as text, with the range if it is visible at this number of digits."""
    scaled = [value * scale for value in values]
    text = f"{mean(scaled):.{digits}f}"
    low, high = (f"{end(scaled):.{digits}f}" for end in (min, max))
    if max(scaled) - min(scaled) >= 0.5 * 10**-digits and low != high:
        text += f" ({low}-{high})"
    return text


def _under(attack: str, runs: list[Results]) -> str:
    """Returns accuracy under an attack, with the number of images and runs if it is not all."""
    found = [r for r in runs if attack in r.get("attacks", {})]
    if not found:
        return ""
    text = _spread([r["accuracy"][attack] for r in found], 1, 100)
    images = [r["attacks"][attack]["attack"]["images"] for r in found]
    if images != [r["attack"]["images"] for r in found]:
        text += f", {min(images):,} images"
    some = f", {len(found)} of {len(runs)} runs" if len(found) < len(runs) else ""
    return text + some


LAST = "PGD-10 last %"
"""Title of the accuracy under PGD-10 for which only the last iterate counts."""


def _last_iterate(runs: list[Results], attack: str) -> str:
    """Returns accuracy under an attack if only the last iterate counts, as in most published code.

    The number of runs is added if some were not evaluated this way.
    """
    found = [r["accuracy"][f"{attack}-last"] for r in runs if f"{attack}-last" in r["accuracy"]]
    some = f", {len(found)} of {len(runs)} runs" if len(found) < len(runs) else ""
    return _spread(found, 1, 100) + some if found else ""


def _lost(runs: list[Results]) -> str:
    """Returns how far PGD accuracy of the last epoch is below that of the best epoch, in points.

    Only epochs after the masks were frozen count, because before that pruning lowers the accuracy.
    Only runs with held-out images count, because the history of others is of training images.
    """
    runs = [run for run in runs if settings(run)["validation"]]
    traced = [[row["pgd"] for row in r.get("history", ()) if row["frozen"]] for r in runs]
    traced = [pgd for pgd in traced if len(pgd) > 1]
    return _spread([max(pgd) - pgd[-1] for pgd in traced], 1, 100) if traced else ""


COLUMNS: dict[str, Callable[[list[Results]], str]] = {
    "data": lambda runs: measured_on(runs[0]),
    "model": lambda runs: network(runs[0]),
    "method": lambda runs: method(runs[0]),
    "masks": lambda runs: settings(runs[0])["granularity"],
    "budget": lambda runs: (
        settings(runs[0])["budget"]
        + {"macs": ""}.get(kind := runs[0]["budget"]["kind"], f" {kind}")
    ),
    "eps": lambda runs: radius(runs[0]["attack"]["epsilon"]),
    "defense": lambda runs: defense(runs[0]),
    "recipe": lambda runs: recipe(runs[0]),
    "runs": lambda runs: str(len(runs)),
    "natural %": lambda runs: _spread([r["accuracy"]["natural"] for r in runs], 1, 100),
    "PGD-10 %": lambda runs: _spread([r["accuracy"]["pgd"] for r in runs], 1, 100),
    LAST: lambda runs: _last_iterate(runs, "pgd"),
    "lost": _lost,
    "MACs left": lambda runs: _spread([r["cost"]["macs_ratio"] for r in runs], 4),
    "params left": lambda runs: _spread([r["cost"]["params_ratio"] for r in runs], 4),
    "epochs": lambda runs: str(runs[0]["epochs"]),
    "passes": lambda runs: _spread([r["passes_per_image"] for r in runs], 0),
    "minutes": lambda runs: _spread([r["wall_time_s"] for r in runs], 1, 1 / 60),
}
"""Column title -> function of a set of runs that differ in the seed alone, returning the cell."""


NAMING = ("data", "model", "method", "masks", "budget", "eps", "defense", "recipe", "epochs")
"""Titles of the columns that tell rows apart."""


def lines(results: Iterable[Results]) -> tuple[list[str], list[list[str]]]:
    """Returns the titles, and a row of cells for each set of seeds. Each attack has a column."""
    grouped = groups(results)
    attacks = list(
        dict.fromkeys(name for runs in grouped for r in runs for name in r.get("attacks", {}))
    )
    columns: dict[str, list[str]] = {}
    for title, cell in COLUMNS.items():
        columns[title] = [cell(runs) for runs in grouped]
        if title == LAST:
            for name in attacks:
                columns[f"{name} %"] = [_under(name, runs) for runs in grouped]
                columns[f"{name} last %"] = [_last_iterate(runs, name) for runs in grouped]
    # Empty columns are dropped: some runs have no accuracy for the last iterate.
    columns = {t: cells for t, cells in columns.items() if "last %" not in t or any(cells)}
    titles = list(columns)
    names = list(zip(*(columns[title] for title in NAMING), strict=True))
    alike = [names.count(name) > 1 for name in names]
    if any(alike):  # for instance the same command at several commits
        columns["commit"] = [
            commits(runs) if a else "" for runs, a in zip(grouped, alike, strict=True)
        ]
        titles.insert(titles.index("natural %"), "commit")
    return titles, [list(line) for line in zip(*(columns[t] for t in titles), strict=True)]


def commits(runs: list[Results]) -> str:
    """Returns the short commits of some runs, with a plus sign where the tree had changes."""
    found = dict.fromkeys(run.get("commit") or "unknown" for run in runs)
    return ", ".join(commit[:7] + "+" * commit.endswith("+") for commit in found)


def sections(results: Iterable[Results]) -> dict[str, list[Results]]:
    """Groups runs by model and data set: "model, data set" -> the runs of one table."""
    found: dict[tuple[str, str], list[Results]] = defaultdict(list)
    for one in results:
        found[measured_on(one), network(one)].append(one)
    return {f"{model}, {data}": found[data, model] for data, model in sorted(found)}


def markdown(results: Iterable[Results]) -> str:
    """Returns the tables of all runs in Markdown, one for each model and data set."""
    found = sections(results)
    if len(found) == 1:
        return "".join(_table(runs) for runs in found.values())
    return "\n".join(
        f"**{name}**\n\n{_table(runs, known=('data', 'model'))}" for name, runs in found.items()
    )


def _table(results: Iterable[Results], known: Collection[str] = ()) -> str:
    """Returns one table in Markdown. Cells that all rows share are stated once, above the table.

    Args:
        results: the results of all runs.
        known: titles of columns to leave out.
    """
    common, titles, rows = without_common_columns(results, known)
    written = [f"In every line: {common}.", ""] if common else []
    written += ["| " + " | ".join(titles) + " |"]
    written += ["|" + "---|" * len(titles)]
    written += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(written) + "\n"


def without_common_columns(
    results: Iterable[Results], known: Collection[str]
) -> tuple[str, list[str], list[list[str]]]:
    """Returns the cells that all rows share, as text, and the titles and rows of the other columns.

    The text is empty if there is only one row.

    Args:
        results: the results of all runs.
        known: titles of columns to leave out.
    """
    titles, rows = lines(results)
    said = titles[: titles.index("natural %")] if len(rows) > 1 else []
    same = [title for title in said if len({row[titles.index(title)] for row in rows}) == 1]
    common = [f"{title} {rows[0][titles.index(title)]}" for title in same if title not in known]
    shown = [place for place, title in enumerate(titles) if title not in {*same, *known}]
    return "; ".join(common), [titles[p] for p in shown], [[row[p] for p in shown] for row in rows]


def library_table(report: Results) -> str:
    """Returns a Markdown table of networks attacked by several libraries.

    It has a row for each network and library.

    Args:
        report: the output of `python -m benchmarks.autoattack` or `python -m benchmarks.pgd`.
    """
    networks = report["networks"]
    attacks = list(networks[0]["irp_jax"]["accuracy"])
    head = ["network", "images", "epsilon", "natural %", "by", *(f"{a} %" for a in attacks)]
    head += ["seconds", "of which slice by slice"]
    written = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for network in networks:
        facts = [
            f"{network['model']} on {network['dataset']}, {network['macs_ratio']:.3g} of MACs, "
            f"{network['defense']}",
            str(network["images"]),
            f"{network['epsilon']:.3g}",
            f"{100 * network['natural']:.1f}",
        ]
        for side, found in network.items():
            if not isinstance(found, dict):
                continue
            cells = [f"{100 * found['accuracy'][name]:.1f}" for name in attacks]
            slices = " + ".join(f"{seconds:.0f}" for seconds in found["slices"])
            line = [*facts, side, *cells, f"{found['total']:.0f}", slices]
            written.append("| " + " | ".join(line) + " |")
    return "\n".join(written) + "\n"
