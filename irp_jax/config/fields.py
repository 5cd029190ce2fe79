"""Dataclass fields with the values that they allow."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from irp_jax.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval of allowed numbers.

    Attributes:
        low, high: the ends.
        open_low, open_high: whether an end is excluded. Infinity is always excluded.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high or self.high == math.inf else value <= self.high
        return above and below  # both comparisons are false for NaN

    def __str__(self) -> str:
        if self.high == math.inf:
            least = "positive" if self.open_low and not self.low else f"at least {_text(self.low)}"
            return least if self.low and not self.open_low else f"{least} and finite"
        left, right = "[("[self.open_low], "])"[self.open_high]
        return f"in {left}{_text(self.low)}, {_text(self.high)}{right}"


def _text(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) and number < 1e5 else f"{number:,.0f}"


def positive(default: Any, most: float = math.inf) -> Any:
    """Returns a field for a number in (0, `most`]. If the default is None, None is allowed."""
    return _field(default, interval=Interval(0, most, open_low=True))


def at_least(low: float, default: Any, most: float = math.inf) -> Any:
    """Returns a field for a number in [`low`, `most`]."""
    return _field(default, interval=Interval(low, most))


def share(default: float) -> Any:
    """Returns a field for a number in [0, 1)."""
    return _field(default, interval=Interval(0, 1, open_high=True))


def one_of(options: Iterable[str], default: str) -> Any:
    """Returns a field for one of the given names."""
    return _field(default, options=tuple(options))


def _field(default: Any, **metadata: Any) -> Any:
    return dataclasses.field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """Checks every field of a dataclass against its interval or its options.

    Raises:
        UserError: names the first field with a wrong value, and the values that are allowed.
    """
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        options, interval = (field.metadata.get(key) for key in ("options", "interval"))
        if options and value not in options:
            raise unknown(flag if field.name == "evaluate_on" else field.name, value, options)
        if interval and value is not None and value not in interval:
            raise UserError(f"{flag} must be {interval}, got {_text(value)}")
