"""Checks every setting before anything is loaded or written."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from irp_jax import attacks, models
from irp_jax.config import fields
from irp_jax.config.amounts import parse_budget, parse_channels
from irp_jax.config.command_line import flag
from irp_jax.config.config import (
    AVERAGE,
    BASELINES,
    LOGS,
    PARENT,
    SETTINGS_OF,
    WITH_PARENT,
    Config,
)  # fmt: skip
from irp_jax.data import check_name
from irp_jax.errors import UserError, unknown


def check(config: Config, given: Collection[str] = ()) -> None:
    """Checks every setting of a run.

    Args:
        config: of the run.
        given: contains "model" or "dataset" if the caller passes an object instead of a name. That
            name is then not checked.

    Raises:
        UserError: names the first setting that is wrong, and gives a value that works.
    """
    _check_types(config)
    if "dataset" not in given:
        check_name(config.dataset)
    if "model" not in given:
        _check_model(config)
    fields.check(config)
    parse_budget(config.budget)
    if config.cost == "latency" and not config.latency_table:
        raise UserError(
            f"--cost=latency needs --latency-table=table.json: measure it with bin/latency "
            f"--model={config.model} --out=table.json"
        )
    if config.cost == "latency" and config.granularity != "channel":
        raise UserError(
            f"--cost=latency needs --granularity=channel, not {config.granularity}: single weights "
            f"that are zero take as much time as others"
        )
    attacks.linf(config.epsilon)
    if config.epochs < (stages := BASELINES.get(config.method, 1)):
        why = f", one for each stage of --method={config.method}" if stages > 1 else ""
        raise UserError(f"--epochs must be at least {stages}{why}, got {config.epochs}")
    for name in config.log_to.split(",") if config.log_to else ():
        if name not in LOGS:
            raise unknown("log", name, LOGS)
    if config.workdir == "":
        raise UserError("--workdir must name a folder, got an empty name")
    if config.method == "lagrangian" and not config.prune_start < config.prune_stop:
        raise UserError(
            f"--prune-start must be below --prune-stop, got {config.prune_start:g} and "
            f"{config.prune_stop:g}"
        )
    if config.reinit and config.granularity != "channel":
        raise UserError("--reinit is for --granularity=channel: leave it out for weights")
    if config.spread and config.granularity != "channel":
        raise UserError("--spread is for --granularity=channel: leave it out for weights")
    if config.spread and not 1 <= config.spread < math.inf:
        raise UserError(f"--spread must be 0 (off) or at least 1, got {config.spread:g}")
    _check_teacher(config)
    _check_quantization(config)
    if config.method == "magnitude" and config.pretraining >= 1:
        raise UserError(
            f"--pretraining must leave a part of training to the pruned network: it must be below "
            f"1, got {config.pretraining:g}"
        )
    if config.method == "admm" and config.pretraining + config.admm_stage >= 1:
        raise UserError(
            f"--pretraining and --admm-stage must leave a part of training to the pruned network: "
            f"together they must be below 1, got {config.pretraining + config.admm_stage:g}"
        )
    if config.method == "width" and config.granularity != "channel":
        raise UserError(
            f"--method=width makes layers narrower: give --granularity=channel, "
            f"not {config.granularity}"
        )
    if parse_channels(config.channels) and config.method != "width":
        raise UserError(
            f"--channels is for --method=width, not {config.method}: "
            f"give --method=width or leave --channels out"
        )


def _check_teacher(config: Config) -> None:
    if config.teacher == AVERAGE and config.method == "hinge":
        raise UserError(
            "--teacher=average teaches the compact network, and --method=hinge prunes only at the "
            "end of training: give another method, or the folder of a saved network"
        )
    if config.teacher == AVERAGE and not config.ema:
        raise UserError("--teacher=average needs a moving average: give --ema=0.999 with it")
    if config.teacher == PARENT and config.method not in WITH_PARENT:
        raise UserError(
            f"--teacher=parent is the dense network of the run, and --method={config.method} "
            f"trains none: give the folder of a saved network, or --method=lagrangian"
        )
    if config.teacher == PARENT and config.epochs < (least := BASELINES.get(config.method, 2)):
        raise UserError(f"--epochs must be at least {least} with a parent, got {config.epochs}")


def _check_quantization(config: Config) -> None:
    if not config.quantize:
        return
    if config.quantize not in (schemes := SETTINGS_OF["quantize"]):
        raise unknown("quantize", config.quantize, schemes)
    if config.granularity != "channel":
        raise UserError(
            f"--quantize={config.quantize} is for --granularity=channel, not {config.granularity}: "
            f"leave one of them out"
        )
    if config.method == "hinge":
        raise UserError(
            f"--quantize={config.quantize} trains the compact network, and --method=hinge prunes "
            f"only at the end of training: give another method"
        )


def _check_model(config: Config) -> None:
    if not models.is_file(config.model):
        if config.model not in models.MODELS:
            raise unknown("model", config.model, [*models.MODELS, "FILE.py:NAME"])
        if config.activation not in models.ACTIVATIONS:
            raise unknown("activation", config.activation, models.ACTIVATIONS)
        return
    models.check_file(config.model)
    if config.width != 1:
        raise UserError(
            f"--width={config.width:g} is for models of ours: {config.model} sets its own widths"
        )
    if config.activation != "relu":
        raise UserError(
            f"--activation={config.activation} is for models of ours: {config.model} sets its own"
        )


TYPES: dict[Any, tuple[str, Any]] = {
    bool: ("True or False", bool),
    int: ("a whole number", int),
    float: ("a number", int | float),
    int | None: ("a whole number", int),
    float | None: ("a number", int | float),
}
"""Type of a field -> its name in messages, and the types that are accepted. Other fields are
text."""


def _check_types(config: Config) -> None:
    """Checks types. Flags are parsed by type, but a config written in Python may hold any value."""
    for field in dataclasses.fields(config):
        if field.name == "budget":
            continue  # parse_budget accepts a number or text and checks it
        value = getattr(config, field.name)
        said, allowed = TYPES.get(field.type, ("text", str))
        # In Python a bool is an int, so bool fields are compared separately.
        fits = isinstance(value, allowed) and isinstance(value, bool) == (field.type is bool)
        if not fits and not (value is None and field.default is None):
            raise UserError(f"{flag(field.name)} must be {said}, got {value!r}")
