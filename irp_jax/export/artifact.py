"""A file that was exported, read again and run by its own runtime."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from irp_jax import files
from irp_jax.errors import UserError, extra
from irp_jax.export.onnx import LAYOUTS
from irp_jax.export.tensors import IMAGES, LOGITS


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """A network in a file.

    Attributes:
        format: "onnx" or "stablehlo".
        facts: what the file says of itself: key -> text, see `file.metadata`.
        size: bytes.
        sha256: of the file.
        nodes: operators, where the format has such.
        layout: of the images that `run` takes.
        run: the runtime: images float32 in `layout` -> logits (N, K).
    """

    format: str
    facts: Mapping[str, str]
    size: int
    sha256: str
    nodes: int | None
    layout: str
    run: Callable[[np.ndarray], np.ndarray]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, K) of images (N, H, W, C) float32 in [0, 1]."""
        return self.run(self.arranged(images))

    def arranged(self, images: np.ndarray) -> np.ndarray:
        """Images (N, H, W, C) in the layout of the file."""
        return np.ascontiguousarray(images.transpose(LAYOUTS[self.layout]))


def digest(content: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def facts_of(path: Path) -> Path:
    """Where the facts lie of a file that has no room for them."""
    return path.with_name(path.name + ".json")


def load(path: str | Path, *, threads: int = 0) -> Artifact:
    """Reads an exported file.

    Args:
        path: that `Network.export` wrote. What is named *.stablehlo, or has a JSON file beside it,
            is StableHLO, all else ONNX.
        threads: that onnxruntime computes with; its own choice if 0. StableHLO runs as JAX does.

    Raises:
        UserError: there is no such file, it is damaged or none of ours, or the extra is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: bin/export writes one")
    content = path.read_bytes()
    beside = files.read_json(facts_of(path))
    if path.suffix != ".stablehlo" and beside is None:
        return of(content, "onnx", threads=threads)
    if not isinstance(beside, dict) or beside.pop("sha256", None) != digest(content):
        raise UserError(f"{facts_of(path)} is not of {path}, or missing: export the network anew")
    return of(content, "stablehlo", beside)


def of(
    content: bytes, format: str, facts: Mapping[str, str] | None = None, *, threads: int = 0
) -> Artifact:
    """An artifact from a file's content; see `load`.

    Args:
        content: of the file.
        format: "onnx" or "stablehlo".
        facts: where the file has no room for them.
        threads: see `load`.
    """
    run, nodes, own = _onnx(content, threads) if format == "onnx" else _stablehlo(content)
    facts = own or facts or {}
    layout = facts.get("input_layout", "NHWC")
    if layout not in LAYOUTS:
        raise UserError(f"a file whose images lie as {layout!r}: export the network anew")
    return Artifact(
        format=format, facts=facts, size=len(content), sha256=digest(content), nodes=nodes,
        layout=layout, run=run,
    )  # fmt: skip


def _onnx(content: bytes, threads: int) -> tuple[Callable, int, dict[str, str]]:
    with extra("onnx"):
        import onnx
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        model = onnx.load_model_from_string(content)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnx and onnxruntime have errors of many kinds
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"onnxruntime cannot run the file ({type(error).__name__}: {first})") from (
            error
        )
    names = [each.name for each in (*session.get_inputs(), *session.get_outputs())]
    if names != [IMAGES, LOGITS]:
        raise UserError(
            f"an ONNX file with {', '.join(names)}, not {IMAGES} and {LOGITS}: give one that "
            f"bin/export wrote"
        )
    facts = {each.key: each.value for each in model.metadata_props}
    return lambda images: session.run(None, {IMAGES: images})[0], len(model.graph.node), facts


def _stablehlo(content: bytes) -> tuple[Callable, None, dict[str, str]]:
    import jax
    from jax import export

    try:
        function = jax.jit(export.deserialize(bytearray(content)).call)
    except Exception as error:  # of another version of JAX, beyond its window
        raise UserError(
            f"the file is not readable by jax {jax.__version__}: export anew"
        ) from error
    return lambda images: np.asarray(function(images)), None, {}


def image_shape(facts: Mapping[str, str]) -> Any:
    """(H, W, C) of a file's images; None if it does not say."""
    return json.loads(facts["image_shape"]) if "image_shape" in facts else None
