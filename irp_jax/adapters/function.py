"""Adapter for plain functions with their variables."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from irp_jax.adapters.adapted import Adapted, Shape
from irp_jax.adapters.calls import keys_of, name_of, switches_of
from irp_jax.adapters.leaves import (
    Arrays,
    Leaves,
    Path,
    is_floating,
    join,
)


def adapt(function: Callable, variables: Any, image_shape: Shape) -> Adapted:
    switches, keys = switches_of(function), keys_of(function)
    parted = isinstance(variables, Mapping) and "params" in variables

    def kind(path: Path, leaf: Any) -> str | None:
        trained = not parted or getattr(path[0], "key", None) == "params"
        return "params" if trained and is_floating(leaf) else None

    leaves = Leaves(
        variables,
        lambda path: join(path) or "params",  # a single array has an empty path
        kind,
    )

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        return leaves.split(variables)

    def apply(
        params: Arrays, state: Arrays, images: jax.Array, train: bool, key: Any
    ) -> tuple[Any, Arrays]:
        arguments = {**switches(train), **keys(train, key)}
        return function(leaves.tree(params), images, **arguments), state

    return Adapted(
        apply=apply, init=init, kind="function", name=name_of(function), image_shape=image_shape
    )  # fmt: skip
