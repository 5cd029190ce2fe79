"""A config as it is typed."""

import dataclasses

from irp_jax.config.config import Config


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def flags(config: Config, default: Config | None = None) -> list[str]:
    """What to type after bin/train for this config: the fields that differ from a default's."""
    given = []
    for name, value in dataclasses.asdict(config).items():
        if default is not None and name != "dataset" and value == getattr(default, name):
            continue
        if isinstance(value, bool):
            given.append(flag(name) if value else flag(f"no_{name}"))
        elif value is not None and value != "":  # as flags neither can be written
            given.append(f"{flag(name)}={value}")
    return given
