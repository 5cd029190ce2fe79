"""What a training run is, from the command line or a file, checked before anything is loaded."""

from irp_jax.config.amounts import fraction, parse_budget, radius
from irp_jax.config.check import check
from irp_jax.config.config import BASELINES, DEFENSES, SCHEDULES, Config, suited
from irp_jax.config.flags import flags
from irp_jax.config.identity import identity, run_name, workdir
from irp_jax.config.load import from_json, load, load_all

__all__ = [
    "BASELINES", "DEFENSES", "SCHEDULES", "Config", "check", "flags", "fraction", "from_json",
    "identity", "load", "load_all", "parse_budget", "radius", "run_name", "suited", "workdir",
]  # fmt: skip
