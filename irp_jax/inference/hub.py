"""Fetches a network from the Hugging Face hub. Only this file uses huggingface_hub."""

import re
from pathlib import Path

from irp_jax.errors import UserError, extra, reason
from irp_jax.inference import layout

PREFIX = "hf-hub:"

NAME = re.compile(rf"{PREFIX}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


def is_name(path: str | Path) -> bool:
    """Returns whether a text names a network on the hub."""
    return str(path).startswith(PREFIX)


def fetch(name: str) -> Path:
    """Downloads the files of a saved network, unless they are in the cache of huggingface_hub.

    Only the files that `layout.read` checks are downloaded. None of them is executed as Python.

    Args:
        name: "hf-hub:OWNER/NAME", or "hf-hub:OWNER/NAME@REVISION" for a branch, tag or commit.

    Returns:
        A folder for `layout.read`.

    Raises:
        UserError: the name is not of this form, the extra `hub` is not installed, the download
            failed, or the repository holds no network of this package.
    """
    parts = NAME.fullmatch(name)
    if parts is None:
        raise UserError(
            f"{name!r} is no name on the hub: give {PREFIX}OWNER/NAME, or {PREFIX}OWNER/NAME@COMMIT"
        )
    with extra("hub"):
        import huggingface_hub
    try:
        found = huggingface_hub.snapshot_download(
            parts["repository"], revision=parts["revision"], allow_patterns=list(layout.FILES)
        )
    except Exception as error:  # huggingface_hub and its HTTP client raise many types
        raise UserError(
            f"cannot download {name} ({reason(error)}): check the name and the "
            f"network connection, or give a folder"
        ) from error
    folder = Path(found)
    if not layout.is_saved(folder):
        raise UserError(f"{name} has no {layout.ARRAYS}: give a network that bin/publish wrote")
    return folder
