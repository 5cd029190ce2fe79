"""Finds the official files on the user's disk, and checks the network before a download.

A download must match its published checksum. A file that the user placed may be compressed again,
see `find_local_files`.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import tensorflow_datasets as tfds

from irp_jax.data.official import OFFICIAL
from irp_jax.errors import UserError

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10
_SLACK_BYTES = 64 << 20


def find_local_files(name: str, url_infos: Mapping[str, Any], root: Path) -> dict[str, Path]:
    """Finds official files that need no download.

    A file counts if it has its official name in a folder for the user's files, or its published
    checksum under any name in the folder of earlier downloads.
    """
    found = {}
    downloads = root / "downloads"
    for file, url in OFFICIAL[name].files.items():
        published = url_infos[url]
        placed = [
            folder / file for folder in (downloads / "manual" / name, downloads / "manual", root)
        ]
        downloaded = [
            path
            for path in sorted((downloads / name).glob("**/*"))
            if path.is_file() and path.stat().st_size == published.size
        ]
        for path in filter(Path.is_file, placed):
            if _accept(path, name, published.checksum):
                found[file] = path
                break
        else:
            for path in downloaded:
                if _sha256(path) == published.checksum:
                    found[file] = path
                    break
    return found


def _accept(path: Path, name: str, expected: str) -> bool:
    """Returns whether to use a file that the user placed; warns if its checksum is not published.

    The published checksum is that of the compressed file. The same images compressed again have
    another. Such a file is accepted here. Its contents must then have exactly the published sizes
    and label ranges. A file that another set publishes under the same name (MNIST and
    Fashion-MNIST) is skipped.
    """
    actual = _sha256(path)
    if actual == expected:
        return True
    for other, official in OFFICIAL.items():
        infos = tfds.builder_cls(other).url_infos
        if actual in {infos[url].checksum for url in official.urls}:
            _log.warning("%s belongs to %s, not to %s: skipped", path, other, name)
            return False
    _log.warning(
        "%s: sha256 is %s, published for %s is %s; used if its contents are valid",
        path, actual, name, expected,
    )  # fmt: skip
    return True


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def check_room(
    name: str, url_infos: Mapping[str, Any], missing: Mapping[str, str], root: Path
) -> None:
    """Raises UserError if the directory is not writable or has too little room for the set."""
    parent = root
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot prepare {name} in {root}: {parent} is not a directory that can be written; "
            "choose another place with --data-dir"
        )
    # The prepared set takes about as much room as the official files, and more for small sets.
    urls = [*missing.values(), *OFFICIAL[name].urls]
    needed = sum(url_infos[url].size for url in urls) + _SLACK_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(
            f"cannot prepare {name} in {root}: it takes {needed >> 20} MiB and {free >> 20} MiB "
            "are free; make room or choose another place with --data-dir"
        )


def check_network(name: str, missing: Mapping[str, str], root: Path) -> None:
    """Sends one request, because the downloader itself retries for minutes before it fails."""
    url = next(iter(missing.values()))
    try:
        with requests.get(url, stream=True, timeout=_CONNECT_TIMEOUT_S) as response:
            response.raise_for_status()
    except requests.HTTPError as error:
        raise download_failed(name, missing, root, str(error)) from error
    except requests.RequestException as error:
        reason = f"no connection to {urlsplit(url).hostname}"
        raise download_failed(name, missing, root, reason) from error


def download_failed(name: str, missing: Mapping[str, str], root: Path, reason: str) -> UserError:
    base = next(iter(missing.values())).rsplit("/", 1)[0]
    return UserError(
        f"cannot download {name} ({reason}): put {' and '.join(missing)} from {base}/ into "
        f"{root / 'downloads' / 'manual' / name}, or into a folder of your own and pass "
        "--data-dir=FOLDER, or use --dataset=digits"
    )
