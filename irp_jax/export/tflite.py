"""Writes a network as a LiteRT model, and runs such a model.

JAX writes the function as StableHLO, and the LiteRT converter turns it into operators of LiteRT. It
needs no TensorFlow.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.errors import UserError, extra, reason
from irp_jax.export import litert_converter
from irp_jax.export.tensors import IMAGES, LOGITS
from irp_jax.export.tracing import any_images, tracing

IDENTIFIER = b"TFL3"
"""Bytes 4 to 7 of a LiteRT model."""


def check_installed() -> None:
    """Checks that the extra `litert` is installed.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    with extra("litert"):
        import ai_edge_litert.interpreter  # noqa: F401


def serialized(
    function: Callable[[jax.Array], jax.Array],
    image_shape: Sequence[int],
    *,
    metadata: Mapping[str, str] | None = None,
    symbolic: bool = True,
) -> bytes:
    """Returns a LiteRT model of a function of images.

    The model has one input, `images` (1, H, W, C), and one output, `logits` (1, K), both float32.
    Runtimes may resize the input to more images, if no operator of the network names their number.
    That is not faster for networks of this size.

    Args:
        function: images (N, H, W, C) float32 -> logits (N, K).
        image_shape: (H, W, C).
        metadata: key -> text, stored in the model as a JSON object with the name `irp_jax`.
        symbolic: whether N is symbolic when the function is traced; else it is 1.

    Raises:
        UserError: the function cannot be traced or converted, or the converter not be installed.
    """
    (content,) = litert_converter.convert(
        [request(function, image_shape, metadata=metadata, symbolic=symbolic)]
    )
    return content


def request(
    function: Callable[[jax.Array], jax.Array],
    image_shape: Sequence[int],
    *,
    metadata: Mapping[str, str] | None = None,
    symbolic: bool = True,
) -> litert_converter.Request:
    """Returns what the converter needs of a function; for the arguments see `serialized`.

    Raises:
        UserError: the function cannot be traced.
    """
    from jax import export

    # On a CPU, convolutions of a known number of images are written in a way that is fast in JAX
    # and slow in LiteRT: see `graph.fast_convolution`. So their number is symbolic, and the
    # converter sets it to 1.
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    images = any_images(image_shape) if symbolic else images
    with tracing("LiteRT"):
        exported = export.export(jax.jit(function), platforms=("cpu",))(images)
    return litert_converter.Request(exported.mlir_module_serialized, image_shape, metadata or {})


# ---- running a model -----------------------------------------------------------------------------


def load(content: bytes, threads: int = 0) -> tuple[Callable[[Any], Any], int, dict[str, str]]:
    """Reads a LiteRT model.

    Args:
        content: of a file that `serialized` wrote.
        threads: number of threads; 0 lets LiteRT choose.

    Returns:
        Function of images (N, H, W, C) float32, N at least 1, that returns logits (N, K), running
        the model on one image after the other; number of operators; metadata.

    Raises:
        UserError: the extra is not installed, or `serialized` did not write the model.
    """
    with extra("litert"):
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.interpreter import Interpreter
    try:
        runner = Interpreter(model_content=content, num_threads=threads or None)
        model = schema.Model.GetRootAs(content, 0)
        nodes, facts = model.Subgraphs(0).OperatorsLength(), _metadata(model)
        signatures = list(runner.get_signature_list().values())
        runner.allocate_tensors()
    except Exception as error:  # LiteRT raises many types
        raise UserError(
            f"LiteRT cannot run the file ({reason(error)}): export the network again"
        ) from error
    if signatures != [{"inputs": [IMAGES], "outputs": [LOGITS]}] or facts is None:
        raise UserError(
            f"the LiteRT file does not have the input {IMAGES} and the output {LOGITS}, or lacks "
            f"metadata: give a file that bin/export wrote"
        )
    (given,), (returned,) = runner.get_input_details(), runner.get_output_details()

    def one(image: np.ndarray) -> np.ndarray:
        runner.set_tensor(given["index"], image[None])
        runner.invoke()
        return runner.get_tensor(returned["index"])[0]

    return lambda images: np.stack([one(image) for image in images]), nodes, facts


def _metadata(model: Any) -> dict[str, str] | None:
    """Returns the entry `irp_jax` of a model's metadata; None if there is none."""
    entries = map(model.Metadata, range(model.MetadataLength()))
    for entry in entries:
        if entry.Name() == b"irp_jax":
            found = json.loads(bytes(model.Buffers(entry.Buffer()).DataAsNumpy()))
            return {str(key): str(value) for key, value in found.items()}
    return None
