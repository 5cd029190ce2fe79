"""What results of a run must have to be shown, and what is added to those of older versions."""

from collections.abc import Mapping
from typing import Any

from irp_jax.config import COSTS, SETTINGS_OF, Config, settings
from irp_jax.report.tables import Results, lines

NEEDED = {
    "model", "dataset", "method", "seed", "budget", "cost", "attack", "epochs", "wall_time_s",
}  # fmt: skip
"""Keys that the results of a run must have, in addition to config and accuracy."""

NUMBERS = (
    ("accuracy", "natural"), ("accuracy", "pgd"), ("cost", "macs"), ("cost", "params"),
    ("cost", "macs_ratio"), ("cost", "params_ratio"), ("budget", "target"), ("attack", "epsilon"),
    ("attack", "images"), ("epochs",), ("wall_time_s",),
)  # fmt: skip
"""Values of a run's results that must be numbers."""

ROW = ("epoch", "natural", "pgd", "cost_ratio", "frozen")
LAYER = ("layer", "channels_out", "dense_channels_out", "macs", "dense_macs", "params",
         "dense_params")  # fmt: skip
"""Keys of a row of `history` and of a row of `layers`."""


def lacking(results: Mapping[str, Any]) -> list[str]:
    """Returns the names of needed entries that the results of a run do not have."""
    given = results.get("accuracy")
    accuracy = set(given) if isinstance(given, dict) else set()
    return sorted((NEEDED - set(results)) | ({"natural", "pgd"} - accuracy))


def problem(found: Mapping[str, Any]) -> str:
    """Returns why results cannot be used; empty if they can."""
    if missing := lacking(found):
        return f"lacks {', '.join(missing)}"
    if not isinstance(found.get("config"), dict):
        return "config must be a JSON object"
    for keys in NUMBERS:
        value: Any = found
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{'.'.join(keys)} must be a number, got {str(value)[:40]!r}"
    if found["budget"].get("kind") not in COSTS:
        kinds = " or ".join(COSTS)
        return f"budget.kind must be {kinds}, got {str(found['budget'].get('kind'))[:40]!r}"
    return ""


def is_evaluation(found: Mapping[str, Any]) -> bool:
    """Returns whether this is an output of `bin/evaluate --out` with all keys that are needed."""
    attack, accuracy = found.get("attack"), found.get("accuracy")
    curve = found.get("curve", {"epsilon": [], "accuracy": []})
    return (
        isinstance(attack, dict)
        and {"name", "epsilon", "images"} <= set(attack)
        and isinstance(accuracy, dict)
        and all(isinstance(value, int | float) for value in accuracy.values())
        and isinstance(curve, dict)
        and {"epsilon", "accuracy"} <= set(curve)
        and len(curve["epsilon"]) == len(curve["accuracy"])
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
    results = {
        **found,
        "config": chosen,
        "rollbacks": found.get("rollbacks", []),
        "identity": found.get("identity", {}),
        "defense": found.get("defense", found["config"].get("defense", "unknown")),
        "passes_per_image": found.get("passes_per_image", 0.0),
    }
    for key, needed in (("history", ROW), ("layers", LAYER)):
        rows = found.get(key, [])
        whole = isinstance(rows, list) and all(
            isinstance(row, dict) and set(needed) <= set(row) for row in rows
        )
        if not whole:
            said.append(f"its {key} is not as expected")
        results[key] = rows if whole else []
    try:
        lines([results])
    except Exception as error:  # any field may have another type
        said.append(f"its settings cannot be read ({type(error).__name__}: {error})")
    return results, "; ".join(part for part in said if part)
