"""Tables of results: in the terminal, and in Markdown for the README."""

import json
from collections import defaultdict
from collections.abc import Iterable
from statistics import mean
from typing import Any

from rich.table import Table

from irp_jax.config import parse_budget

Results = dict[str, Any]

HEAD = (
    "data",
    "model",
    "method",
    "masks",
    "budget",
    "defence",
    "runs",
    "natural %",
    "PGD-10 %",
    "MACs left",
    "params left",
    "epochs",
    "passes",
    "minutes",
)


def groups(results: Iterable[Results]) -> list[list[Results]]:
    """Runs that differ in the seed alone, together; in a stable order."""
    found: dict[tuple, list[Results]] = defaultdict(list)
    for one in results:
        found[_what(one)].append(one)
    return [sorted(found[key], key=lambda r: r["seed"]) for key in sorted(found)]


def _what(one: Results) -> tuple:
    config = {key: value for key, value in one["config"].items() if key != "seed"}
    return (
        one["dataset"], one["model"], one["budget"]["kind"], one["method"], config["regularity"],
        defense(one),
        parse_budget(config["budget"]), json.dumps(config, sort_keys=True),
    )  # fmt: skip


def defense(one: Results) -> str:
    """The defence a run ended with; "attack" is what results of one-step defences called it."""
    config = one["config"]
    asked = config.get("defense") or config.get("attack", "rs-fgsm").replace("rs-fgsm", "fgsm-rs")
    return one.get("defense", asked)


def row(runs: list[Results]) -> list[str]:
    """One line: means over the seeds, with the range where there are several."""
    first = runs[0]

    def spread(values: list[float], digits: int, scale: float = 1.0) -> str:
        scaled = [value * scale for value in values]
        text = f"{mean(scaled):.{digits}f}"
        if len(scaled) > 1 and max(scaled) - min(scaled) >= 0.5 * 10**-digits:
            text += f" ({min(scaled):.{digits}f}-{max(scaled):.{digits}f})"
        return text

    return [
        first["dataset"],
        first["model"],
        first["method"],
        first["config"]["regularity"],
        first["config"]["budget"] + (" params" if first["budget"]["kind"] == "params" else ""),
        defense(first),
        str(len(runs)),
        spread([r["accuracy"]["natural"] for r in runs], 1, 100),
        spread([r["accuracy"]["pgd"] for r in runs], 1, 100),
        spread([r["cost"]["macs_ratio"] for r in runs], 4),
        spread([r["cost"]["params_ratio"] for r in runs], 4),
        str(first["epochs"]),
        spread([r.get("passes_per_image", 2.0 * r["epochs"]) for r in runs], 0),
        spread([r["wall_time_s"] for r in runs], 1, 1 / 60),
    ]


def summary(results: Iterable[Results]) -> Table:
    """All runs as a terminal table, one line per set of seeds."""
    table = Table(title="results")
    for title in HEAD:
        table.add_column(title, justify="right")
    for runs in groups(results):
        table.add_row(*row(runs))
    return table


def markdown(results: Iterable[Results]) -> str:
    """The same in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row(runs)) + " |" for runs in groups(results)]
    return "\n".join(lines) + "\n"


def beside(report: Results) -> str:
    """Networks attacked here and by others, in Markdown: a line for each network and side.

    Args:
        report: of `python -m benchmarks.autoattack` or `python -m benchmarks.pgd`.
    """
    networks = report["networks"]
    attacks = list(networks[0]["irp_jax"]["accuracy"])
    head = ["network", "images", "epsilon", "natural %", "by", *(f"{a} %" for a in attacks)]
    head += ["seconds", "of which slice by slice"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
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
            lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"
