"""What tells one run from another, and where it is kept."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from irp_jax.config.amounts import parse_channels, write_channels
from irp_jax.config.config import Config

USUAL = ("macs", "channel", "priced")
"""What a run's name does not mention."""

LOCAL = ("workdir", "data_dir", "checkpoint_every")
"""Fields that say where and how often, not what: they do not change a run's outcome."""


def identity(config: Config) -> dict[str, Any]:
    """What decides a run's outcome, as JSON takes it: fields, and the content of a user's file."""
    # Text that is left empty decides nothing: runs from before there was such a field go on.
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in LOCAL and v != ""}
    if config.channels:  # in whatever order they were given
        fields["channels"] = write_channels(parse_channels(config.channels))
    if config.dataset.endswith(".npz") and Path(config.dataset).is_file():
        with open(config.dataset, "rb") as file:
            fields["dataset_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return fields


def workdir(config: Config) -> Path:
    """Where a run is kept: as asked, or runs/ and the run's name."""
    return Path("runs", run_name(config)) if config.workdir is None else Path(config.workdir)


def run_name(config: Config) -> str:
    """Names a run: what tells runs apart at a glance, and a digest of what decides the outcome."""
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:6]
    kind = [part for part in (config.cost, config.regularity, config.method) if part not in USUAL]
    dataset = Path(config.dataset).stem
    parts = (config.model, dataset, config.budget, *kind, f"seed{config.seed}", digest)
    return "-".join(str(part) for part in parts)
