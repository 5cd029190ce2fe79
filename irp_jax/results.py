"""Recognises the results of runs of other versions."""

from pathlib import Path
from typing import Any

from irp_jax.errors import UserError

NEEDED = {"keep_counts", "rollbacks"}
"""Keys that the results of other versions lack or call otherwise."""


def check_version(found: dict[str, Any], path: Path, flag: str) -> None:
    """Checks that the results of a run are of this version.

    Args:
        found: the content of results.json.
        path: of the file, for the error.
        flag: the flag that chooses another place.

    Raises:
        UserError: they are of another version.
    """
    if NEEDED - set(found):
        raise UserError(
            f"{path} is of another version of irp_jax: move it away, or choose another {flag}"
        )
