"""Writes a network to a file.

The file is checked before it is written: its logits must equal those of the network, up to
`TOLERANCE`. It is written completely or not at all.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from irp_jax import __version__, checkpoint, files
from irp_jax.errors import UserError, reason, unknown
from irp_jax.export import artifact, litert_marks, onnx, padding, stablehlo, tflite
from irp_jax.export.tracing import any_images
from irp_jax.inference.network import TrainedNetwork
from irp_jax.pruning.latency_table import MULTIPLE

FORMATS = ("onnx", "tflite", "stablehlo")

TOLERANCE = {"float32": 1e-3, "int8": 0.1}
"""Largest allowed difference of a logit between file and network, relative to the largest logit.
Rounding differences of float32 are far smaller. In 8 bits a value between two levels may be rounded
either way, and the difference grows from layer to layer."""


def write(
    network: TrainedNetwork,
    path: str | Path,
    format: str = "onnx",
    *,
    layout: str = "NHWC",
    multiple: int | None = None,
    model: Any = None,
) -> bytes:
    """Writes a network to one file; see `Network.export` for the arguments.

    Returns:
        The content of the file.

    Raises:
        UserError: see `Network.export`.
    """
    path = Path(path)
    check_asked(path, format, layout)
    if multiple is not None and format != "onnx":
        raise UserError(f"multiple is for onnx only: leave it out for {format}")
    if multiple is None:
        multiple = network.record.get("multiple", MULTIPLE)
    if multiple < 1:
        raise UserError(f"multiple must be at least 1, got {multiple}")
    written, about = network, metadata(network, layout)
    if format == "onnx":
        written = with_zero_channels(network, multiple, model)
        about["multiple"] = str(multiple)
    content = serialized(written, format, layout=layout, about=about, model=model)
    check(network, artifact.from_bytes(content, format, about))
    if format == "stablehlo":  # it cannot contain metadata
        files.write_json(
            artifact.metadata_path(path), {**about, "sha256": artifact.digest(content)}
        )
    files.write_whole(path, lambda file: file.write(content))
    return content


def check_asked(path: Path, format: str, layout: str) -> None:
    """Checks the arguments of an export before the network is traced.

    Raises:
        UserError: see `Network.export`.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if layout not in onnx.LAYOUTS:
        raise unknown("layout", layout, onnx.LAYOUTS)
    if format != "onnx" and layout != "NHWC":
        raise UserError(f"layout {layout} is for onnx only: {format} takes images as NHWC")
    if format == "onnx":
        onnx.check_installed()
    if format == "tflite":
        tflite.check_installed()
    files.check_place(path)


def with_zero_channels(network: TrainedNetwork, multiple: int, model: Any) -> TrainedNetwork:
    """Returns the network with zero channels, up to multiples of `multiple` in each group.

    Returns the network unchanged if `multiple` is 1, if its channel graph is not known, or if zero
    channels make its logits infinite or NaN. A division by the norm of a kernel of zeros does that,
    for example.
    """
    graph = network.graph(model) if multiple > 1 else None
    if graph is None:
        return network
    wide = dataclasses.replace(
        network, variables=padding.padded(graph, network.variables, multiple)
    )
    images = np.full((2, *network.image_shape), 0.5, np.float32)
    return wide if np.isfinite(np.asarray(wide(images))).all() else network


def serialized(
    network: TrainedNetwork,
    format: str = "onnx",
    *,
    layout: str = "NHWC",
    about: Mapping[str, str] | None = None,
    model: Any = None,
) -> bytes:
    """Returns the content of the file.

    Args:
        network, format, layout, model: see `Network.export`.
        about: metadata to store, key -> text; None for `metadata(network, layout)`.

    Raises:
        UserError: see `Network.export`.
    """
    about = metadata(network, layout) if about is None else about

    def function(images: jax.Array) -> jax.Array:
        return network.apply(network.variables, images)

    if format == "onnx":
        return onnx.serialized(
            function, network.image_shape, layout=layout, metadata=about,
            name=network.name,
        )  # fmt: skip
    if format == "tflite" and network.quantization is not None:
        known = network.traced_model(model, "write it for LiteRT in 8 bits")
        marked = litert_marks.marked(known.network, network.quantization, network.variables)
        return tflite.serialized(marked, network.image_shape, metadata=about, symbolic=False)
    if format == "tflite":
        return tflite.serialized(function, network.image_shape, metadata=about)
    try:
        return stablehlo.serialized(function, any_images(network.image_shape))
    except Exception as error:  # JAX raises many types here
        raise UserError(f"the network cannot be written as StableHLO ({reason(error)})") from error


def metadata(network: TrainedNetwork, layout: str) -> dict[str, str]:
    """Returns the metadata of a file, key -> text.

    It has `natural_accuracy` and `pgd_accuracy`, in [0, 1] on the test images, if the results of
    the network are known.
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
    if network.quantization is not None:
        facts["quantization"] = json.dumps(network.quantization.record())
    measured = (network.results or {}).get("accuracy", {})
    for key in ("natural", "pgd"):
        if key in measured:
            facts[f"{key}_accuracy"] = measured[key]
    return {key: str(value) for key, value in facts.items()}


def check(network: TrainedNetwork, written: "artifact.Artifact") -> None:
    """Checks that a file computes the same logits as its network, on two random images.

    Raises:
        UserError: the logits differ by more than `TOLERANCE`.
    """
    images = np.random.default_rng(0).uniform(size=(2, *network.image_shape)).astype(np.float32)
    here, there = np.asarray(network(images)), written(images)
    apart = np.abs(here - there).max() / max(float(np.abs(here).max()), 1e-6)
    if not apart <= TOLERANCE["float32" if network.quantization is None else "int8"]:
        what = f"the file would differ from the network by {apart:.1g} of the largest logit"
        if written.format == "tflite":  # the converter and LiteRT are not ours
            raise UserError(
                f"{what}: LiteRT computes an operation of it otherwise, so use --format=onnx"
            )
        raise UserError(f"{what}: please report this as a bug in irp_jax, with the network")
