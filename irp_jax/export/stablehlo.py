"""Writes and reads functions as StableHLO. JAX can run them without the code of the model."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

PLATFORMS = ("cpu", "cuda", "tpu")

HARMLESS = (
    "shape_assertion", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape",
)  # fmt: skip
"""Targets of custom calls that are checks and hints to the compiler and run no other code."""

OUTSIDE = re.compile(r"custom_call|\b(?:infeed|outfeed|send|recv)\b")
"""Operations that reach outside of the function."""

ALLOWED = re.compile(rf"custom_call @(?:{'|'.join(HARMLESS)})\b")


def serialized(function: Callable[..., Any], *shapes: Any) -> bytes:
    """Serializes a function and its gradient for all `PLATFORMS`, with `jax.export`.

    The bytes name source files, but no folders of this machine.

    Args:
        function: a function of arrays. Arrays that it closes over are stored with it.
        *shapes: a pytree of `jax.ShapeDtypeStruct` for each argument. Sizes may be symbolic.

    Raises:
        ValueError: the function needs code outside of XLA, so that `deserialized` would refuse it.
    """
    from jax import export

    with _without_folders():
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
        content = bytes(exported.serialize(vjp_order=1))
    deserialized(content)
    return content


@contextlib.contextmanager
def _without_folders() -> Iterator[None]:
    """Within the block, JAX notes names of source files without the folders of this machine."""
    setting = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, setting)
    jax.config.update(setting, r".*[/\\]")
    try:
        yield
    finally:
        jax.config.update(setting, before)


def deserialized(content: bytes) -> Any:
    """Returns the function that `serialized` wrote, as a `jax.export.Exported`.

    The bytes may come from anyone. A custom call in them would run any code that is registered
    with XLA, among it Python callbacks. So a function with such a call, or with a transfer to the
    host, is refused. This holds for its gradient, too.

    Raises:
        ValueError: the function reaches outside of XLA.
        Exception: JAX cannot read the bytes. It raises many types.
    """
    from jax import export

    exported = part = export.deserialize(bytearray(content))
    while True:
        found = OUTSIDE.search(ALLOWED.sub("", part.mlir_module()))
        if found:
            raise ValueError(f"it has the operation {found[0]}, which may run other code")
        if not part.has_vjp():
            return exported
        part = part.vjp()
