"""The file of a table of latencies: written once for a device, read by runs that prune for it."""

import dataclasses
from importlib import metadata
from pathlib import Path

from irp_jax import files, machine
from irp_jax.errors import UserError
from irp_jax.pruning.latency_table import LatencyTable, from_json
from irp_jax.traced import TracedModel


def save(table: LatencyTable, path: str | Path) -> None:
    """Writes a table as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    files.check_place(Path(path))
    files.write_json(Path(path), table.to_json())


def load(path: str | Path) -> LatencyTable:
    """Reads a table.

    Raises:
        UserError: there is no such file, or it is no table or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: bin/latency --out={path} measures one")
    try:
        return from_json(files.read_json(path))
    except ValueError as error:
        raise UserError(
            f"{path} is no table of latencies ({error}): measure it anew with bin/latency"
        ) from error


def attached(model: TracedModel, path: str | Path, device: str = "") -> tuple[TracedModel, int]:
    """Returns a model whose graph has the latencies of a file as a cost, and the file's multiple.

    Args:
        model: the dense network.
        path: of the table.
        device: name of the device that the table must be of; this machine if empty.

    Raises:
        UserError: see `load`; or the table is of another model, device or version of its runtime.
    """
    table = load(path)
    again = f"measure it with bin/latency --runtime={table.runtime} --out={path}"
    graph, name = model.graph, model.spec.get("name", model.name)
    if table.fingerprint != graph.fingerprint:
        shape = "x".join(map(str, table.image_shape))
        raise UserError(
            f"{path} is of {table.model} for images {shape}, not of this {name} for "
            f"{'x'.join(map(str, graph.image_shape))}, or of another width, activation or number "
            f"of classes: {again}, with the same --model and --dataset"
        )
    here = device or device_of(table.runtime)
    if table.device != here:
        raise UserError(
            f"{path} is of the device {table.device!r}, not {here!r}: {again}, or give "
            f"--latency-device={table.device!r} to train for that device"
        )
    installed = version_of(table.runtime)
    if not device and table.runtime_version != installed:
        raise UserError(
            f"{path} is of {table.runtime} {table.runtime_version}, and "
            f"{installed or 'none'} is installed: {again}, or give "
            f"--latency-device={table.device!r} to train for the device as it was"
        )
    try:
        return dataclasses.replace(model, graph=table.attached(graph)), table.multiple
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {again}") from error


def device_of(runtime: str) -> str:
    """Returns the name of this machine's processor, or of the accelerator that JAX uses."""
    here = machine.describe()
    on_cpu = runtime != "jax" or here["platform"] == "cpu"
    return str(here["processor"] if on_cpu else here["device"])


def version_of(runtime: str) -> str:
    """Returns the version of a runtime; "" if it is not installed."""
    try:
        return metadata.version({"litert": "ai-edge-litert"}.get(runtime, runtime))
    except metadata.PackageNotFoundError:
        return ""
