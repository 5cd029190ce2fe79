"""A network to a file, whole or not at all, and only if the file computes what the network does."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import __version__, checkpoint, files
from irp_jax.errors import UserError, unknown
from irp_jax.export import artifact, channels, onnx, stablehlo
from irp_jax.pruning.latency import MULTIPLE

if TYPE_CHECKING:
    from irp_jax.network import Network

FORMATS = ("onnx", "stablehlo")

TOLERANCE = 1e-3
"""Difference of file and network, relative to the largest logit, that is no rounding."""


def write(
    network: "Network",
    path: str | Path,
    format: str = "onnx",
    *,
    layout: str = "NHWC",
    multiple: int | None = None,
    model: Any = None,
) -> bytes:
    """Writes a network as one file; see `Network.export`.

    Returns:
        The file's content.

    Raises:
        UserError: see `Network.export`.
    """
    path = Path(path)
    check_asked(path, format, layout)
    if multiple is None:
        multiple = network.record.get("multiple", MULTIPLE)
    if multiple < 1:
        raise UserError(f"multiple must be at least 1, got {multiple}")
    written = network
    if format == "onnx" and multiple > 1:
        written = _padded(network, multiple, model)
    about = metadata(network, layout)
    content = serialized(written, format, layout=layout, about=about)
    check(network, artifact.of(content, format, about))
    if format == "stablehlo":  # which has no room for facts
        files.write_json(artifact.facts_of(path), {**about, "sha256": artifact.digest(content)})
    files.write_whole(path, lambda file: file.write(content))
    return content


def check_asked(path: Path, format: str, layout: str) -> None:
    """Refuses what cannot be written, before the work for it is done.

    Raises:
        UserError: see `Network.export`.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if layout not in onnx.LAYOUTS:
        raise unknown("layout", layout, onnx.LAYOUTS)
    if format == "stablehlo" and layout != "NHWC":
        raise UserError(f"layout {layout} is for onnx: StableHLO takes the images as JAX has them")
    if format == "onnx":
        onnx.check_installed()
    files.check_place(path)


def _padded(network: "Network", multiple: int, model: Any) -> "Network":
    """The network with zero channels, where its graph is known and they do no harm: a division by
    the size of a kernel that is all zero, for instance, has no value."""
    graph = network.graph(model)
    if graph is None:
        return network
    wide = dataclasses.replace(
        network, variables=channels.padded(graph, network.variables, multiple)
    )
    images = np.full((2, *network.image_shape), 0.5, np.float32)
    return wide if np.isfinite(np.asarray(wide(images))).all() else network


def serialized(
    network: "Network",
    format: str = "onnx",
    *,
    layout: str = "NHWC",
    about: Mapping[str, str] | None = None,
) -> bytes:
    """The content of the file.

    Args:
        network, format, layout: see `Network.export`; so are the errors.
        about: the facts in it; those of the network if None.
    """
    about = metadata(network, layout) if about is None else about

    def function(images: jax.Array) -> jax.Array:
        return network.apply(network.variables, images)

    if format == "onnx":
        return onnx.serialized(
            function, network.image_shape, layout=layout, metadata=about,
            name=network.name,
        )  # fmt: skip
    from jax import export

    (count,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *network.image_shape), jnp.float32)
    try:
        return stablehlo.serialized(function, images)
    except Exception as error:  # whatever JAX cannot export
        raise UserError(
            f"the network cannot be written as StableHLO ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]})"
        ) from error


def metadata(network: "Network", layout: str) -> dict[str, str]:
    """What a file says of itself: key -> text.

    `natural_accuracy` and `pgd_accuracy`, shares of the test images, are there if the network's
    results are known.
    """
    facts: dict[str, Any] = {
        "model": network.name,
        "classes": json.dumps(list(network.class_names)),
        "input_range": "[0, 1]",
        "input_layout": layout,
        "image_shape": json.dumps(list(network.image_shape)),
        "epsilon": repr(network.epsilon),
        "macs": network.cost["macs"],
        "params": network.cost["params"],
        "network_sha256": checkpoint.digest(network.variables),
        "irp_jax_version": __version__,
        "commit": files.commit() or "unknown",
    }
    measured = (network.results or {}).get("accuracy", {})
    for key in ("natural", "pgd"):
        if key in measured:
            facts[f"{key}_accuracy"] = measured[key]
    return {key: str(value) for key, value in facts.items()}


def check(network: "Network", written: "artifact.Artifact") -> None:
    """Refuses a file that does not compute what the network does.

    Raises:
        UserError: says how far apart they are.
    """
    images = np.random.default_rng(0).uniform(size=(2, *network.image_shape)).astype(np.float32)
    here, there = np.asarray(network(images)), written(images)
    apart = np.abs(here - there).max() / max(float(np.abs(here).max()), 1e-6)
    if not apart <= TOLERANCE:
        raise UserError(
            f"the file would differ from the network by {apart:.1g} of its largest logit: please "
            f"report it, with the network, as a defect of irp_jax"
        )
