"""The names that a user can give: models, data sets, methods, defenses, attacks and configs."""

import ast
from collections.abc import Mapping

from rich.table import Table

from irp_jax import config as configs
from irp_jax.attacks.spec import ATTACKS
from irp_jax.data import DATASETS
from irp_jax.models import MODELS


def names() -> dict[str, list[str]]:
    """Returns kind -> names, for each flag that takes one of several names."""
    return {
        "--model": [*MODELS, "FILE.py:NAME"],
        "--dataset": [*DATASETS, "PATH.npz", "FOLDER"],
        "--method": list(configs.METHODS),
        "--defense": list(configs.DEFENSES),
        "--attack (bin/evaluate)": list(ATTACKS),
    }


def described_configs() -> dict[str, str]:
    """Returns name -> first line of the docstring of each config."""
    found = {}
    for name, path in configs.available().items():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[name] = text.partition("\n")[0]
    return found


def table(rows: Mapping[str, str | list[str]], title: str, first: str, second: str) -> Table:
    """Returns a terminal table of two columns."""
    made = Table(title=title, title_justify="left")
    made.add_column(first, no_wrap=True)
    made.add_column(second, overflow="fold")
    for name, text in rows.items():
        made.add_row(name, text if isinstance(text, str) else ", ".join(text))
    return made
