"""The flags of a config."""

import dataclasses

from irp_jax.config.config import Config


def flag(name: str) -> str:
    """Returns the flag of a field: "--prune-start" for "prune_start"."""
    return "--" + name.replace("_", "-")


def flags(config: Config, default: Config | None = None) -> list[str]:
    """Returns the flags of bin/train for this config: all fields that differ from `default`."""
    given = []
    for name, value in dataclasses.asdict(config).items():
        if default is not None and name != "dataset" and value == getattr(default, name):
            continue
        if isinstance(value, bool):
            given.append(flag(name) if value else flag(f"no_{name}"))
        elif value is not None and value != "":  # None and "" cannot be written as flags
            given.append(f"{flag(name)}={value}")
    return given
