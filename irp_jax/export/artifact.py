"""Reads an exported file and runs it in its own runtime."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

from irp_jax import files
from irp_jax.errors import UserError, extra, reason
from irp_jax.export import tflite
from irp_jax.export.onnx import LAYOUTS
from irp_jax.export.tensors import IMAGES, LOGITS


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """An exported network.

    Attributes:
        format: "onnx", "tflite" or "stablehlo".
        facts: metadata of the file, key -> text; see `file.metadata`.
        size: size of the file in bytes.
        sha256: SHA-256 of the file.
        nodes: number of operators; None for StableHLO.
        layout: axis order of the images that `run` takes: "NHWC" or "NCHW".
        run: runs the file: images float32 in `layout` -> logits (N, K).
    """

    format: str
    facts: Mapping[str, str]
    size: int
    sha256: str
    nodes: int | None
    layout: str
    run: Callable[[np.ndarray], np.ndarray]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the logits (N, K) of images (N, H, W, C) float32 in [0, 1]."""
        return self.run(self.in_layout(images))

    def in_layout(self, images: np.ndarray) -> np.ndarray:
        """Returns images (N, H, W, C) in the axis order of the file."""
        return np.ascontiguousarray(images.transpose(LAYOUTS[self.layout]))


def digest(content: bytes) -> str:
    """Returns the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def metadata_path(path: Path) -> Path:
    """Returns the path of the JSON file with the metadata of a StableHLO file."""
    return path.with_name(path.name + ".json")


def load(path: str | Path, *, threads: int = 0) -> Artifact:
    """Reads an exported file.

    Args:
        path: a file that `Network.export` wrote. It is read as LiteRT if its name ends in .tflite
            or if its content begins so, as StableHLO if its name ends in .stablehlo or if it has a
            JSON file of metadata, else as ONNX.
        threads: number of threads of the runtime; 0 lets the runtime choose. It has no effect on
            StableHLO, which JAX runs.

    Raises:
        UserError: there is no such file, it is damaged, `Network.export` did not write it, or the
            extra is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: bin/export writes one")
    content = path.read_bytes()
    if path.suffix == ".tflite" or content[4:8] == tflite.IDENTIFIER:
        return from_bytes(content, "tflite", threads=threads)
    beside = files.read_json(metadata_path(path))
    if path.suffix != ".stablehlo" and beside is None:
        return from_bytes(content, "onnx", threads=threads)
    if not isinstance(beside, dict) or beside.pop("sha256", None) != digest(content):
        raise UserError(f"{metadata_path(path)} is missing or is not of {path}: export again")
    return from_bytes(content, "stablehlo", beside)


def from_bytes(
    content: bytes, format: str, facts: Mapping[str, str] | None = None, *, threads: int = 0
) -> Artifact:
    """Returns the artifact of a file's content.

    Args:
        content: the content of the file.
        format: "onnx", "tflite" or "stablehlo".
        facts: the metadata of a StableHLO file, which cannot contain them.
        threads: see `load`.

    Raises:
        UserError: see `load`.
    """
    read: Read
    if format == "tflite":
        read = tflite.load(content, threads)
    elif format == "onnx":
        read = _onnx(content, threads)
    else:
        read = _stablehlo(content)
    run, nodes, own = read
    facts = own or facts or {}
    layout = facts.get("input_layout", "NHWC")
    if layout not in LAYOUTS:
        raise UserError(f"the file has the unknown layout {layout!r}: export the network again")
    return Artifact(
        format=format, facts=facts, size=len(content), sha256=digest(content), nodes=nodes,
        layout=layout, run=run,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Returns the versions of the installed packages that write and run files, name -> version."""
    found = {}
    for name in ("onnx", "onnxruntime", "ai-edge-litert"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


Read = tuple[Callable[[np.ndarray], np.ndarray], int | None, dict[str, str]]
"""Function that runs a file, number of operators, metadata."""


def _onnx(content: bytes, threads: int) -> Read:
    with extra("onnx"):
        import onnx
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        model = onnx.load_model_from_string(content)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnx and onnxruntime raise many types
        raise UserError(
            f"onnxruntime cannot run the file ({reason(error)}): export the network again"
        ) from error
    names = [each.name for each in (*session.get_inputs(), *session.get_outputs())]
    if names != [IMAGES, LOGITS]:
        raise UserError(
            f"the ONNX file has inputs and outputs {', '.join(names)}, not {IMAGES} and {LOGITS}: "
            f"give a file that bin/export wrote"
        )
    facts = {each.key: each.value for each in model.metadata_props}
    return lambda images: session.run(None, {IMAGES: images})[0], len(model.graph.node), facts


def _stablehlo(content: bytes) -> Read:
    import jax

    from irp_jax.export import stablehlo

    try:
        function = jax.jit(stablehlo.deserialized(content).call)
    except Exception as error:  # JAX reads only files of recent versions
        raise UserError(
            f"jax {jax.__version__} cannot read the file ({reason(error)}): "
            f"export the network again"
        ) from error
    return lambda images: np.asarray(function(images)), None, {}


def image_shape(facts: Mapping[str, str]) -> list[int] | None:
    """Returns [H, W, C] of the images that a file takes; None if its metadata lack it.

    Raises:
        UserError: the metadata are damaged.
    """
    if "image_shape" not in facts:
        return None
    try:
        shape = json.loads(facts["image_shape"])
        if len(shape) == 3 and all(type(size) is int and size > 0 for size in shape):
            return shape
    except (ValueError, TypeError):
        pass
    raise UserError(
        f"the metadata of the file are damaged (image_shape {facts['image_shape'][:40]!r}): "
        f"export the network again"
    )


def multiple(facts: Mapping[str, str]) -> int:
    """Returns the number that the file's channels are padded to multiples of; 1 for none.

    Raises:
        UserError: the metadata are damaged.
    """
    found = facts.get("multiple", "1")
    if not found.isascii() or not found.isdigit() or int(found) < 1:
        raise UserError(
            f"the metadata of the file are damaged (multiple {found[:40]!r}): export the network "
            f"again"
        )
    return int(found)
