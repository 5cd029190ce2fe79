"""Loads trained networks: from a folder, a checkpoint, or the Hugging Face hub."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from irp_jax import checkpoint
from irp_jax.errors import UserError, reason
from irp_jax.graph import ChannelGraph
from irp_jax.inference import hub, layout
from irp_jax.inference.function import deployed, inference, network_params
from irp_jax.inference.record import (
    described,
    model_of,
    other_model,
    quantization_of,
    stored_name,
)
from irp_jax.network import Network
from irp_jax.pruning import cost, masks


def load(path: str | Path, log: checkpoint.Log = print, *, model: Any = None) -> Network:
    """Loads a saved network, or the network of a run.

    Nothing that is stored is executed as Python. A network whose model is not of this package needs
    its model, or the StableHLO function that was saved with it.

    Args:
        path: a folder that `Network.save` wrote, a run's workdir, its checkpoint folder, one
            checkpoint in it, or the text "hf-hub:OWNER/NAME", which is downloaded; see `hub.fetch`.
        log: called with a line for each damaged checkpoint that is skipped, and if `model` may not
            be the model of the network.
        model: the model of a network that is not of this package, or the text "FILE.py:NAME".

    Raises:
        UserError: there is no network, it is damaged, or its model is needed; also the errors of
            `hub.fetch`.
    """
    folder = hub.fetch(str(path)) if hub.is_name(path) else layout.place(Path(path))
    if layout.is_saved(folder):
        return _load_saved(folder, model, log)
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    saved = checkpoint.restore(checkpoints, None, log)
    if saved is None:
        raise UserError(
            f"no checkpoint in {path}, and no {layout.ARRAYS}: give a run's workdir, such as "
            f"runs/<name>, or the folder of a saved network"
        )
    if saved.epoch == 0:
        log(f"{path} holds a run within its first epoch: this is the untrained network")
    spec = _of_this_version(saved.record, path, named=model is None)
    if model is None and not layout.is_ours(spec):
        if layout.is_saved(folder / "network"):
            return _load_saved(folder / "network", None, log)
        name = spec.get("file", "FILE.py:NAME")
        raise UserError(
            f"{path} is a checkpoint of a network from outside this package: give its model, for "
            f"instance --model={name}, or the workdir of a finished run"
        )
    return of(saved, model)


NEEDED = {"model", "class_names", "image_shape", "groups", "keep_counts", "trained"}
"""Keys that the record of a network in a checkpoint must have."""


def _of_this_version(record: dict[str, Any], path: str | Path, *, named: bool) -> dict[str, Any]:
    """Returns the description of the model in a checkpoint's record.

    Args:
        record: of the checkpoint.
        path: of the checkpoint, for the error.
        named: whether the model is to be built from its name in the record.

    Raises:
        UserError: the checkpoint is of another version of this package.
    """
    network = record.get("network", {})
    spec = network.get("model", {})
    if NEEDED - set(network) or (named and "name" in spec and not layout.is_ours(spec)):
        raise UserError(
            f"{path} holds a checkpoint of another version of irp_jax: use the version that wrote "
            f"it, or train again with another --workdir"
        )
    return spec


def of(saved: checkpoint.Saved, model: Any = None) -> Network:
    """Returns the network of a checkpoint."""
    record = saved.record["network"]
    known = model_of(record, model)
    params = network_params(known.graph, saved.network)
    keep_counts = record["keep_counts"] or {
        name: int((logits > 0).sum()) for name, logits in params["masks"].items()
    }
    variables = jax.device_get(deployed(known.graph, params, saved.network["batch_stats"]))
    return Network(
        apply=inference(known.network, quantization_of(record)),
        variables=variables,
        record=described(record, known.graph, keep_counts, saved.epoch),
    )


def _load_saved(folder: Path, model: Any, log: checkpoint.Log) -> Network:
    record, variables, function = layout.read(folder)
    if model is not None or layout.is_ours(record["model"]):
        known = model_of(record, model)
        if not _fit(known.graph, variables):
            raise other_model(known.name)
        if model is not None and record.get("fingerprint") != known.graph.fingerprint:
            log(
                f"{known.name} may not be the model that {folder} was made with: its trace has "
                f"other operations (which another version of JAX may cause, too)"
            )
        record = _recounted(folder, record, known.graph, variables)
        apply = inference(known.network, quantization_of(record))
    elif function is not None:
        apply = _imported(folder, record, function, variables)
    else:
        raise UserError(
            f"{folder} is of a network from outside this package: give its model, "
            f"{stored_name(record)}"
        )
    history = record.pop("history", [])
    return Network(apply=apply, variables=variables, record=record, history=history)


def _recounted(
    folder: Path,
    record: dict[str, Any],
    graph: ChannelGraph,
    variables: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """Returns the record with the cost of the arrays.

    Raises:
        UserError: the record has other keep counts than the arrays.
    """
    counts = {name: int(count) for name, count in record["keep_counts"].items()}
    if record["granularity"] == "channel":
        sound = counts == graph.sizes({**variables["params"], **variables["batch_stats"]})
    else:
        sizes = masks.units(graph, "weight")
        sound = set(counts) == set(sizes) and all(counts[name] <= sizes[name] for name in sizes)
    if not sound:
        raise UserError(
            f"{folder / layout.RECORD} has other keep counts than the arrays: fetch the network "
            f"again"
        )
    return {**record, "cost": {**record["cost"], **cost.report(graph, counts)}}


def _fit(graph: ChannelGraph, variables: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
    """Returns whether arrays have the names and shapes of a graph's network, dense or compact."""
    arrays = {**variables["params"], **variables["batch_stats"]}
    names = set(variables["params"]), set(variables["batch_stats"])
    if names != (set(graph.params), set(graph.state)):
        return False
    if any(arrays[name].ndim != len(extents) for name, extents in graph.arrays.items()):
        return False
    sizes = graph.sizes(arrays)
    return all(
        arrays[name].shape == tuple(extent.count(sizes) for extent in extents)
        for name, extents in graph.arrays.items()
    )


def _imported(
    folder: Path,
    record: dict[str, Any],
    stored: bytes,
    variables: Mapping[str, Mapping[str, np.ndarray]],
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the function that was saved as StableHLO."""
    from irp_jax.export import stablehlo

    try:
        function = stablehlo.deserialized(stored)
        (given, _), _ = jax.tree.unflatten(function.in_tree, function.in_avals)
        shapes = jax.tree.map(lambda aval: (aval.shape, aval.dtype), given)
        fits = shapes == jax.tree.map(lambda array: (array.shape, array.dtype), dict(variables))
    except Exception as error:  # saved by a version of JAX that is not compatible
        raise UserError(
            f"the function in {folder} cannot be used by jax {jax.__version__} ({reason(error)}): "
            f"give the network's model, {stored_name(record)}"
        ) from error
    if not fits:
        raise UserError(f"the function in {folder} is of another network: fetch the network again")
    return lambda variables, images: function.call(variables, images)
