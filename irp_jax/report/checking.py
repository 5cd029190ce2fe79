"""What results of a run must have to be shown, and what is added to those of older versions."""

import contextlib
import functools
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from irp_jax import results
from irp_jax.config import COSTS, SETTINGS_OF, Config, settings
from irp_jax.report.tables import Results, lines

NEEDED = {
    "model", "dataset", "method", "seed", "budget", "cost", "attack", "epochs", "wall_time_s",
}  # fmt: skip
"""Keys that the results of a run must have, in addition to config and accuracy."""

NUMBERS = (
    ("accuracy", "natural"), ("accuracy", "pgd"), ("cost", "macs"), ("cost", "params"),
    ("cost", "macs_ratio"), ("cost", "params_ratio"), ("budget", "target"), ("attack", "epsilon"),
    ("attack", "images"), ("seed",), ("epochs",), ("wall_time_s",),
)  # fmt: skip
"""Values of a run's results that must be numbers."""

OPTIONAL: dict[str, type] = {
    "attacks": dict, "identity": dict, "rollbacks": list, "defense": str, "commit": str,
    "command": str, "network_sha256": str,
}  # fmt: skip
"""Types of entries that results may have; None counts as no entry."""

ROWS = {
    "history": ("epoch", "natural", "pgd", "cost_ratio"),
    "layers": ("channels_out", "dense_channels_out", "macs", "dense_macs", "params",
               "dense_params"),
}  # fmt: skip
"""Lists of rows in results -> the numbers that each row has."""

OTHERS = {"history": "frozen", "layers": "layer"}
"""The same lists -> what else each row has."""


def lacking(found: Mapping[str, Any]) -> list[str]:
    """Returns the names of needed entries that the results of a run do not have."""
    given = found.get("accuracy")
    accuracy = set(given) if isinstance(given, dict) else set()
    return sorted((NEEDED - set(found)) | ({"natural", "pgd"} - accuracy))


def problem(found: Mapping[str, Any]) -> str:
    """Returns why results cannot be used; empty if they can."""
    if missing := lacking(found):
        return f"lacks {', '.join(missing)}"
    for keys in NUMBERS:
        value: Any = found
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if not is_number(value):
            return f"{'.'.join(keys)} must be a number, got {_short(value)}"
    if found["budget"].get("kind") not in COSTS:
        kinds = " or ".join(COSTS)
        return f"budget.kind must be {kinds}, got {_short(found['budget'].get('kind'))}"
    needed: dict[str, type] = {"config": dict, "model": str, "dataset": str, "method": str}
    for key, kind in needed.items():
        if not isinstance(found.get(key), kind):
            return f"{key} must be {NAMES[kind]}, got {_short(found.get(key))}"
    for key, kind in OPTIONAL.items():
        if not isinstance(found.get(key), kind | None):
            return f"{key} must be {NAMES[kind]}, got {_short(found[key])}"
    for name, later in (found.get("attacks") or {}).items():
        attack = later.get("attack") if isinstance(later, dict) else None
        if not isinstance(attack, dict) or not all(map(is_number, map(attack.get, MEASURED))):
            return f"attacks.{name} must have an attack with {' and '.join(MEASURED)}"
    return _wrong_setting(found["config"])


MEASURED = ("epsilon", "images")
"""Numbers that an attack must have."""

NAMES: dict[type, str] = {dict: "a JSON object", list: "a list", str: "a string"}


def is_number(value: Any) -> bool:
    """Returns whether a value of JSON is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    with contextlib.suppress(OverflowError):  # a whole number that no float can hold
        return math.isfinite(value)
    return False


def _wrong_setting(config: Mapping[str, Any]) -> str:
    """Returns which setting has a value of another type than it takes; empty if none has."""
    for name, hint in _hints().items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if name in config and not any(_is_of(config[name], kind) for kind in kinds):
            return f"config.{name} cannot be {_short(config[name])}"
    return ""


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Config)


def _is_of(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        return is_number(value)
    return isinstance(value, str if get_origin(kind) is Literal else kind)


def _short(value: Any) -> str:
    return repr(value)[:40]


def is_readable(found: Mapping[str, Any]) -> bool:
    """Returns whether the tables of the terminal can show results without a `problem`."""
    try:
        lines([dict(found)])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return not results.NEEDED - set(found)


def rows(found: Mapping[str, Any], key: str) -> list[dict[str, Any]] | None:
    """Returns the list of rows `key` of results; None if it is absent or not as expected."""
    given = found.get(key)
    whole = isinstance(given, list) and all(
        isinstance(row, dict)
        and OTHERS[key] in row
        and all(is_number(row.get(k)) for k in ROWS[key])
        for row in given
    )
    return given if whole else None


def is_evaluation(found: Mapping[str, Any]) -> bool:
    """Returns whether this is an output of `bin/evaluate --out` with all keys that are needed."""
    attack, accuracy = found.get("attack"), found.get("accuracy")
    curve = found.get("curve", {"epsilon": [], "accuracy": []})
    if not (isinstance(attack, dict) and isinstance(accuracy, dict) and isinstance(curve, dict)):
        return False
    radii, measured = curve.get("epsilon"), curve.get("accuracy")
    return (
        isinstance(attack.get("name"), str)
        and all(is_number(attack.get(key)) for key in MEASURED)
        and all(map(is_number, accuracy.values()))
        and isinstance(radii, list)
        and isinstance(measured, list)
        and len(radii) == len(measured)
        and all(map(is_number, [*radii, *measured]))
    )


def completed(found: Results) -> tuple[Results, str]:
    """Returns results with values that an older version did not record, and a note on them.

    The value of a setting that is missing is its default, as in `config.identity`.
    """
    usual = {name: value for name, value in settings(Config()).items() if value is not None}
    chosen = {**usual, **found["config"]}
    without_effect = {
        name
        for by, users in SETTINGS_OF.items()
        for value, names in users.items()
        for name in names
        if chosen.get(by) != value
    }
    added = sorted(set(usual) - set(found["config"]) - without_effect)
    said = [f"it has no setting {', '.join(added[:3])}" if added else ""]
    full = {
        **found,
        "config": chosen,
        "rollbacks": found.get("rollbacks") or [],
        "identity": found.get("identity") or {},
        "attacks": found.get("attacks") or {},
        "defense": found.get("defense") or found["config"].get("defense", "unknown"),
        "passes_per_image": found.get("passes_per_image", 0.0),
    }
    for key in ROWS:
        whole = rows(found, key)
        if whole is None and found.get(key, []) != []:
            said.append(f"its {key} is not as expected")
        full[key] = whole or []
    try:
        lines([full])
    except Exception as error:  # any field may have another type
        said.append(f"its settings cannot be read ({type(error).__name__}: {error})")
    return full, "; ".join(part for part in said if part)
