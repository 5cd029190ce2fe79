"""Calls of a user's network: the keywords it is given, and the messages for its errors."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from irp_jax import prng
from irp_jax.errors import UserError, reason

TRAINING = ("train", "training", "is_training")
"""Keywords of a network's call that are True in training and False in inference."""

INFERENCE = ("deterministic", "use_running_average", "eval", "evaluate", "inference")
"""Keywords of a network's call that are True in inference and False in training."""

BATCH = "batch"
"""Name of the batch axis in Equinox networks."""


def name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function written in C, for instance
        return {}


def switches_of(function: Any) -> Callable[[bool], dict[str, bool]]:
    """Returns a function: whether to train -> the keyword arguments that select this mode."""
    names = _parameters(function)
    return lambda train: {
        **{name: train for name in TRAINING if name in names},
        **{name: not train for name in INFERENCE if name in names},
    }


def keys_of(function: Any) -> Callable[[bool, Any], dict[str, Any]]:
    """Returns a function: (whether to train, key) -> the keyword argument `key`, if accepted."""
    parameter = _parameters(function).get("key")

    def arguments(train: bool, key: Any) -> dict[str, Any]:
        if parameter is None:
            return {}
        if train:
            return {"key": key}
        # To many networks a missing key means inference, so a key is given only if required.
        needed = parameter.default is inspect.Parameter.empty
        return {"key": prng.key(0)} if needed else {}

    return arguments


def key_shape() -> Any:
    return jax.eval_shape(lambda: prng.key(0))


@contextlib.contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turns an error in the user's network into a `UserError` with a message of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        hint = next((text for part, text in _HINTS.items() if part in f"{error!r}"), "")
        raise UserError(f"{what}: {reason(error)}{hint}") from error


_SWITCH = f"give its call a keyword {TRAINING[0]} or {INFERENCE[0]} that tells it the mode"

_HINTS = {
    # Raised by Linen in inference: in training all keys are given and all state may change.
    "InvalidRngError": f": it must draw random numbers in training alone; {_SWITCH}",
    "ModifyScopeVariableError": f": it must change its state in training alone; {_SWITCH}",
    "unbound axis name": f": the batch axis of Equinox networks is {BATCH!r}",
}
"""Part of an error's type or message -> a hint for the user."""
