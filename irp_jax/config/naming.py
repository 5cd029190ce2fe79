"""What tells one run from another, and where it is kept."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irp_jax import files
from irp_jax.config.amounts import parse_budget, parse_channels, write_channels
from irp_jax.config.config import Config

USUAL = ("macs", "channel", "lagrangian")
"""What a run's name does not mention."""

LOCAL = ("workdir", "data_dir", "checkpoint_every")
"""Fields that say where and how often, not what: they do not change a run's outcome."""

BY_RUN = ("model_fingerprint", "teacher_sha256")
"""What a run adds to its identity once it has read the files that are named there."""


def settings(config: Config) -> dict[str, Any]:
    """All fields that decide a run's outcome, as JSON takes them."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in LOCAL and value != ""}


def identity(config: Config) -> dict[str, Any]:
    """What tells a run from others: settings other than the defaults, and the content of files.

    A setting that is new in a version has its default in runs of older ones, so these stay what
    they were. Values are normalised: a budget of 0.04M, 40k or 0.040M is one.
    """
    fields = normalised(settings(config))
    if config.dataset.endswith(".npz") and Path(config.dataset).is_file():
        fields["dataset_sha256"] = files.sha256(Path(config.dataset))
    source = Path(config.model.partition(":")[0])
    if source.suffix == ".py" and source.is_file():
        fields["model_sha256"] = files.sha256(source)
    return fields


def normalised(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as an identity has them, from `settings` of this or of an older version."""
    usual = dataclasses.asdict(Config())
    fields = dict(fields)
    if "budget" in fields:
        amount, absolute = parse_budget(fields["budget"])
        fields["budget"] = f"{amount / 1e3:.12g}k" if absolute else f"{amount:.12g}"
    if fields.get("channels"):  # in whatever order they were given
        fields["channels"] = write_channels(parse_channels(fields["channels"]))
    return {
        name: value
        for name, value in sorted(fields.items())
        if name not in LOCAL and (name not in usual or value != usual[name])
    }


def workdir(config: Config) -> Path:
    """Where a run is kept: as asked, or runs/ and the run's name."""
    return Path("runs", run_name(config)) if config.workdir is None else Path(config.workdir)


def run_name(config: Config) -> str:
    """Names a run: what tells runs apart at a glance, and a digest of what decides the outcome."""
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:6]
    kind = [part for part in (config.cost, config.granularity, config.method) if part not in USUAL]
    model = Path(config.model.replace(".py:", "_")).name
    dataset = Path(config.dataset).stem
    parts = (model, dataset, config.budget, *kind, f"seed{config.seed}", digest)
    return "-".join(str(part) for part in parts)
