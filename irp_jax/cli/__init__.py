"""The commands: each parses its flags into a typed object and calls one function.

`irp-jax NAME` and, in a checkout, `bin/NAME` run the function NAME of the module NAME. The other
modules are what commands share: `common`, `flags`, `stderr` and `stdout`.
"""

import re
from pathlib import Path

COMMANDS = {
    "train": "train and prune a robust network in one run",
    "evaluate": "attack a trained network",
    "sweep": "train and attack many networks and collect the results",
    "report": "show saved results as tables and plots",
    "describe": "show the channels, layers and cost of a network",
    "publish": "write a trained network with a model card, as a hub holds it",
    "export": "write a trained network as one file (ONNX, LiteRT, StableHLO), and verify it",
    "latency": "measure the latency of a network's layers, for budgets of latency",
    "bench": "time a training step and compare it with PyTorch",
    "completion": "print a script that completes commands and flags in bash or zsh",
}


def as_typed(text: str) -> str:
    """Replaces bin/NAME by `irp-jax NAME` in a text, unless this is a checkout, which has bin/."""
    if (Path(__file__).parents[2] / "bin" / "train").is_file():
        return text
    return re.sub(rf"(?<![\w/.])bin/(?=(?:{'|'.join(COMMANDS)})\b(?![/.]))", "irp-jax ", text)
