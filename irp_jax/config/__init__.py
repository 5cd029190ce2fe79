"""The settings of a training run, from flags or a file. They are checked before data is loaded."""

from irp_jax.config.amounts import fraction, parse_budget, parse_channels, radius
from irp_jax.config.checking import check
from irp_jax.config.command_line import flags
from irp_jax.config.config import (
    AVERAGE,
    BASELINES,
    COSTS,
    DEFENSES,
    EVALUATED_ON,
    METHODS,
    PARENT,
    SCHEDULES,
    SETTINGS_OF,
    Config,
    suited,
)
from irp_jax.config.loading import available, channels_of, load, load_all
from irp_jax.config.naming import BY_RUN, identity, normalised, run_name, settings, workdir
from irp_jax.config.unused_settings import unused

__all__ = [
    "AVERAGE", "BASELINES", "BY_RUN", "COSTS", "DEFENSES", "EVALUATED_ON", "METHODS", "PARENT",
    "SCHEDULES", "SETTINGS_OF", "Config", "available", "channels_of", "check", "flags", "fraction",
    "identity", "load", "load_all", "normalised", "parse_budget", "parse_channels", "radius",
    "run_name", "settings", "suited", "unused", "workdir",
]  # fmt: skip
