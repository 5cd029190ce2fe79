"""Finds settings that were given and have no effect."""

import dataclasses

from irp_jax.config.command_line import flag
from irp_jax.config.config import AVERAGE, PARENT, SETTINGS_OF, Config, suited
from irp_jax.data import is_folder


def unused(config: Config) -> list[str]:
    """Returns a message for each non-default setting that the chosen method or defense ignores.

    This is not an error: a sweep over methods passes all settings to each of them.

    Returns:
        One line per setting, in the order of the fields.
    """
    usual = suited(config.dataset)
    lines = []
    for field in dataclasses.fields(config):
        if getattr(config, field.name) == getattr(usual, field.name):
            continue
        for by, users in SETTINGS_OF.items():
            using = [value for value, settings in users.items() if field.name in settings]
            if field.name == "restart_rate" and config.teacher == PARENT:
                continue
            if using and getattr(config, by) not in using:
                lines.append(
                    f"{flag(field.name)} changes nothing: it is for {flag(by)}={' or '.join(using)}"
                )
        if field.name == "image_size" and not is_folder(config.dataset):
            lines.append("--image-size changes nothing: it is for a folder of images")
        if field.name.startswith("teacher_") and not config.teacher:
            lines.append(f"{flag(field.name)} changes nothing: it is for --teacher")
        if field.name == "teacher_views" and config.teacher == AVERAGE:
            lines.append("--teacher-views changes nothing: the average is evaluated in every step")
    return lines
