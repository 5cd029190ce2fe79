"""Configs from files: Python ones in configs/, and the JSON beside a checkpoint."""

import runpy
from pathlib import Path

from irp_jax import files
from irp_jax.config.amounts import write_channels
from irp_jax.config.config import Config
from irp_jax.errors import UserError, unknown


def load(path: str) -> Config:
    """The `config` of a Python file in configs/, given by path or by name.

    Raises:
        UserError: no such file, or it does not define one `config`.
    """
    found = load_all(path)
    if len(found) > 1:
        raise UserError(f"{path} defines {len(found)} runs: give it to bin/sweep")
    return found[0]


def load_all(path: str) -> list[Config]:
    """The `config` of such a file, or its list of `configs`.

    Raises:
        UserError: no such file, or it defines neither.
    """
    package = Path(__file__).parents[1]
    # In a checkout they lie beside the package, in a wheel within it.
    folder = next(p for p in (package / "configs", package.parent / "configs") if p.is_dir())
    options = {p.stem: p for p in sorted(folder.glob("*.py"))}
    file = Path(path) if path.endswith(".py") else options.get(path)
    if file is None:
        raise unknown("config", path, [*options, "PATH.py"])
    if not file.is_file():
        raise UserError(f"no file {path}: --config takes a path or one of {', '.join(options)}")
    try:
        defined = runpy.run_path(str(file))
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise UserError(f"{path} cannot be run ({type(error).__name__}: {error})") from error
    found = defined.get("configs")
    if not isinstance(found, list):  # a module of this name may have been imported
        found = [defined.get("config")]
    if not found or not all(isinstance(config, Config) for config in found):
        raise UserError(
            f"{path} defines no `config`: it must hold config = Config(...), or a list of them "
            f"as configs"
        )
    return found


def channels_of(results: str) -> str:
    """What a run kept, as `Config.channels` takes it, to train the same architecture from scratch.

    Args:
        results: path of the results.json of a run that pruned channels.

    Raises:
        UserError: there is no such file, or it holds no channels.
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
