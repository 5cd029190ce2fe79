"""Parsing of numbers in text: budgets, channel counts and fractions."""

import math
import re
from collections.abc import Mapping

from irp_jax.errors import UserError


def parse_budget(text: str | float) -> tuple[float, bool]:
    """Parses a budget.

    Args:
        text: a fraction in (0, 1], or a positive number with a suffix k, M or G.

    Returns:
        The number, and whether it is absolute: MACs per image or parameters instead of a fraction.

    Raises:
        UserError: the text is not a budget. The message suggests a valid one.
    """
    match = re.fullmatch(r"([0-9.eE+-]+|nan|inf)([kKMG]?)", str(text).strip())
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if not match or math.isnan(number):
        raise UserError(
            f"budget {text!r} is not a number: give a fraction like 0.16 or an amount like 0.04M"
        )
    if match[2]:
        amount = number * {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[match[2]]
        if not 0 < amount < math.inf:
            raise UserError(f"budget must be positive and finite, got {text}: for instance 0.04M")
        return amount, True
    if not 0 < number <= 1:
        hint = (
            f"did you mean {number / 100:g} ({number:g} %)?"
            if 1 < number <= 100
            else "for instance 0.16, or 0.04M with a suffix"
        )
        raise UserError(f"budget must be in (0, 1], got {text}: {hint}")
    return number, False


def parse_channels(text: str) -> dict[str, int]:
    """Parses channel counts such as "stage1=12,stage2=20". An empty text gives no counts.

    Returns:
        Channel group -> number of channels, at least 1.

    Raises:
        UserError: names the part that is not a new group and its count.
    """
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, _, count = (word.strip() for word in part.rpartition("="))
        if not name or not re.fullmatch("[1-9][0-9]{0,8}", count) or name in found:
            raise UserError(
                f"--channels takes each group once with a count of at least 1, for instance "
                f"stage1=12,stage2=20: got {part.strip()!r}"
            )
        found[name] = int(count)
    return found


def write_channels(counts: Mapping[str, int]) -> str:
    """Formats channel counts for `parse_channels`, sorted by the names of the groups."""
    return ",".join(f"{group}={count}" for group, count in sorted(counts.items()))


def fraction(text: str) -> float:
    """Parses a number that may be written as a fraction: "8/255" or "0.03".

    Raises:
        UserError: the text is neither.
    """
    parts = text.split("/")
    try:
        if len(parts) > 2:
            raise ValueError
        return float(parts[0]) / (float(parts[1]) if len(parts) == 2 else 1.0)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{text!r} is not a number: write for instance 0.03 or 8/255") from None


def radius(epsilon: float) -> str:
    """Formats a radius as in the literature: 8/255 for steps of an 8-bit image, or 0.1."""
    steps = round(255 * epsilon)
    whole = math.isclose(steps / 255, epsilon, rel_tol=1e-6)
    return f"{steps}/255" if whole and round(epsilon, 2) != epsilon else f"{epsilon:g}"
