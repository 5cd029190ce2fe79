"""Identity, name and folder of a run."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irp_jax import data, files
from irp_jax.config.amounts import parse_budget, parse_channels, write_channels
from irp_jax.config.config import Config

USUAL = ("macs", "channel", "lagrangian", "")
"""Values that are left out of a run's name."""

LOCAL = ("workdir", "data_dir", "checkpoint_every", "log_to")
"""Fields that do not change a run's outcome."""

BY_RUN = ("model_fingerprint", "teacher_sha256")
"""Entries that `experiment.run` adds to an identity after it has read the model and the teacher."""


def settings(config: Config) -> dict[str, Any]:
    """Returns the fields that decide a run's outcome, as JSON values."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in LOCAL and value != ""}


def identity(config: Config, *, in_memory: bool = False) -> dict[str, Any]:
    """Returns the identity of a run: its non-default settings and digests of the user's files.

    A setting that a later version adds has its default in older runs, so their identities do not
    change. Values are normalised: 0.04M, 40k and 0.040M are one budget.

    Args:
        config: of the run.
        in_memory: whether the data set is given as arrays, so that `config.dataset` is no path.
    """
    fields = normalised(settings(config))
    path = "" if in_memory else config.dataset
    if path.endswith(".npz") and Path(path).is_file():
        fields["dataset_sha256"] = files.sha256(Path(path))
    if data.is_folder(path):
        fields["dataset_sha256"] = data.folder_digest(path)
    if config.latency_table and Path(config.latency_table).is_file():
        fields["latency_table_sha256"] = files.sha256(Path(config.latency_table))
    source = Path(config.model.partition(":")[0])
    if source.suffix == ".py" and source.is_file():
        fields["model_sha256"] = files.sha256(source)
    return fields


def normalised(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as in an identity, from `settings` of this version or an older one."""
    usual = dataclasses.asdict(Config())
    fields = dict(fields)
    if "budget" in fields:
        amount, absolute = parse_budget(fields["budget"])
        fields["budget"] = f"{amount / 1e3:.12g}k" if absolute else f"{amount:.12g}"
    if len(fields.get("dataset", "")) > 1:  # shells complete the name of a folder with a slash
        fields["dataset"] = fields["dataset"].rstrip("/")
    if fields.get("channels"):  # their order has no meaning
        fields["channels"] = write_channels(parse_channels(fields["channels"]))
    return {
        name: value
        for name, value in sorted(fields.items())
        if name not in LOCAL and (name not in usual or value != usual[name])
    }


def workdir(config: Config) -> Path:
    """Returns the folder of a run: `config.workdir`, or runs/ and the run's name."""
    return Path("runs", run_name(config)) if config.workdir is None else Path(config.workdir)


def run_name(config: Config) -> str:
    """Returns a run's name: its main settings and a digest of its identity."""
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:6]
    kinds = (config.cost, config.granularity, config.method, config.quantize)
    kind = [part for part in kinds if part not in USUAL]
    model = Path(config.model.replace(".py:", "_")).name
    dataset = Path(config.dataset).stem
    parts = (model, dataset, config.budget, *kind, f"seed{config.seed}", digest)
    return "-".join(str(part) for part in parts)
