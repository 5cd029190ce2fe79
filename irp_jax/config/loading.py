"""Loading of configs from Python files, and of channel counts from results.json."""

import runpy
from pathlib import Path

from irp_jax import files
from irp_jax.config.amounts import write_channels
from irp_jax.config.config import Config
from irp_jax.errors import UserError, unknown


def load(path: str) -> Config:
    """Loads the `config` of a Python file.

    Args:
        path: path of the file, or the name of a file in configs/.

    Raises:
        UserError: there is no such file, or it does not define exactly one config.
    """
    found = load_all(path)
    if len(found) > 1:
        raise UserError(f"{path} defines {len(found)} runs: give it to bin/sweep")
    return found[0]


def available() -> dict[str, Path]:
    """Returns name -> file of the configs that are part of the package."""
    package = Path(__file__).parents[1]
    # In a checkout configs/ is beside the package, in a wheel inside it.
    folders = (package / "configs", package.parent / "configs")
    return {p.stem: p for folder in folders for p in sorted(folder.glob("*.py"))}


def load_all(path: str) -> list[Config]:
    """Loads the `config` of a Python file, or its list `configs`. The path is as for `load`.

    Raises:
        UserError: there is no such file, or it defines neither.
    """
    options = available()
    file = Path(path) if path.endswith(".py") else options.get(path)
    if file is None:
        raise unknown("config", path, [*options, "PATH.py"])
    if not file.is_file():
        raise UserError(f"no file {path}: --config takes a path or one of {', '.join(options)}")
    try:
        defined = runpy.run_path(str(file))
    except (Exception, SystemExit) as error:  # a user's file can raise anything
        raise UserError(f"{path} cannot be run ({type(error).__name__}: {error})") from error
    found = defined.get("configs")
    if not isinstance(found, list):  # `configs` may be an imported module
        found = [defined.get("config")]
    if not found or not all(isinstance(config, Config) for config in found):
        raise UserError(
            f"{path} defines no `config`: it must hold config = Config(...), or a list of them "
            f"as configs"
        )
    return found


def channels_of(results: str) -> str:
    """Returns the keep counts of a run in the form of `Config.channels`.

    With them, the same architecture can be trained from scratch.

    Args:
        results: path of the results.json of a run that pruned channels.

    Raises:
        UserError: there is no such file, or it holds no keep counts of channels.
    """
    found = files.read_json(Path(results))
    try:
        keep_counts = {str(group): int(count) for group, count in found["keep_counts"].items()}
        of_channels = found["config"]["granularity"] == "channel"
    except (AttributeError, KeyError, TypeError, ValueError):
        keep_counts, of_channels = {}, False
    if not keep_counts or not of_channels:
        raise UserError(
            f"no channels in {results}: give the results.json of a run that pruned channels"
        )
    return write_channels(keep_counts)
