"""The facts of a network as RobustBench lists them: one JSON object per network.

Croce et al., "RobustBench: a standardized adversarial robustness benchmark", NeurIPS Datasets and
Benchmarks 2021. The keys and types are those of `model_info` in its repository.
"""

import dataclasses
import math
from typing import Any

from irp_jax.config import radius
from irp_jax.report.tables import Results, network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    """What RobustBench lists and no run knows.

    Attributes:
        title: of the paper, or the name of the network.
        authors: names, separated by commas.
        link: address of the paper.
        venue: where it was published.
    """

    title: str
    authors: str = ""
    link: str = ""
    venue: str = ""


def robustbench(found: Results, paper: Paper) -> dict[str, Any]:
    """Returns what RobustBench lists about a network. Accuracies are texts, in %.

    `reported` is the lowest accuracy that was measured on all test images, at the L-inf radius of
    training. `autoattack_acc` is the accuracy under the standard version of AutoAttack on all test
    images. It is empty if that was not measured, because figures on fewer images do not compare.

    Args:
        found: the results of the run.
        paper: what no run knows.
    """
    accuracy, config = found["accuracy"], found["config"]
    whole = {
        name: other["attack"]
        for name, other in found.get("attacks", {}).items()
        if other["attack"]["images"] == found["attack"]["images"]
        and other["attack"].get("norm") == "linf"
        and math.isclose(other["attack"]["epsilon"], config["epsilon"])
    }
    standard = [
        accuracy[name]
        for name, attack in whole.items()
        if attack["name"] == "autoattack" and attack["version"] == "standard"
    ]
    return {
        "link": paper.link,
        "name": paper.title,
        "authors": paper.authors,
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": config["dataset"],
        "venue": paper.venue,
        "architecture": network(found),
        "eps": radius(config["epsilon"]),
        "clean_acc": _percent(accuracy["natural"]),
        "reported": _percent(min(accuracy[name] for name in ("pgd", *whole))),
        "autoattack_acc": _percent(min(standard)) if standard else "",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
