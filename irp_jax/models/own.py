"""Loads a user's network from a Python file, given as FILE.py:NAME."""

import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import Any

from irp_jax import prng
from irp_jax.errors import UserError, reason, unknown

CLASSES = ("classes", "num_classes", "n_classes")
"""Arguments of a user's class that get the number of classes."""


def is_file(name: str) -> bool:
    """Returns whether a model's name refers to a file, such as "my_net.py:Net"."""
    return ".py" in name or os.sep in name


def check(name: str) -> None:
    """Checks that a name may refer to a network in a file, without running the file.

    Raises:
        UserError: the name has another form, or there is no such file.
    """
    path, _, attribute = name.partition(":")
    if not path.endswith(".py") or not attribute.isidentifier():
        raise UserError(f"--model={name}: give a file and a name in it, for instance my_net.py:Net")
    if not Path(path).is_file():
        raise UserError(f"no file {path}: --model takes a model's name or FILE.py:NAME")


def from_file(name: str, classes: int, seed: int) -> Any:
    """Returns the network NAME of a file; if NAME is a class, an instance of it.

    The user's file is executed. A class is called with the number of classes if it has an argument
    in `CLASSES`, with `rngs` if it has that argument of NNX modules, with `key` if it has that of
    Equinox modules, and with no other arguments.

    Args:
        name: "FILE.py:NAME".
        classes: number of classes of the data.
        seed: seed of `rngs` and `key`.

    Raises:
        UserError: the file cannot be run, it has no such name, or the class needs other arguments.
    """
    check(name)
    path, _, attribute = name.partition(":")
    found = _run(Path(path)).get(attribute)
    if found is None:
        options = [n for n, value in _run(Path(path)).items() if inspect.isclass(value)]
        raise unknown(f"network in {path}", attribute, options)
    return _made(found, name, classes, seed) if inspect.isclass(found) else found


def _run(path: Path) -> dict[str, Any]:
    module_name = f"irp_jax_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up their module
    sys.path.insert(0, str(path.parent.absolute()))  # lets it import files next to it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise UserError(f"{path} cannot be run ({reason(error)})") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return vars(module)


def _made(cls: Any, name: str, classes: int, seed: int) -> Any:
    try:
        # The signature of __init__, since a module's metaclass hides that of the class.
        _, *found = inspect.signature(cls.__init__).parameters.values()
    except (TypeError, ValueError):
        found = []
    parameters = {parameter.name: parameter for parameter in found}
    given: dict[str, Any] = {}
    for argument in CLASSES:
        if argument in parameters:
            given[argument] = classes
    if "rngs" in parameters:
        from flax import nnx

        given["rngs"] = nnx.Rngs(prng.key(seed))
    if "key" in parameters:
        given["key"] = prng.key(seed)
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in given
    ]
    if needed:
        raise UserError(
            f"{name} needs arguments ({', '.join(needed)}): give them defaults, or make an "
            f"instance in the file and name that"
        )
    try:
        return cls(**given)
    except Exception as error:  # whatever the user's class raises
        raise UserError(f"{name} cannot be made ({reason(error)})") from error
