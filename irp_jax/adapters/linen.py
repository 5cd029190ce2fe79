"""Adapter for Flax Linen networks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.adapters.adapted import Adapted, Shape
from irp_jax.adapters.calls import key_shape, switches_of, user_code
from irp_jax.adapters.leaves import (
    Arrays,
    Leaves,
    Path,
    in_collections,
    is_array,
    is_floating,
    join,
    step,
)
from irp_jax.errors import UserError


def adapt(model: Any, image_shape: Shape, variables: Any) -> Adapted:
    from flax import core

    switches = switches_of(type(model).__call__)

    def plain(tree: Any) -> Any:
        return core.unfreeze(core.meta.unbox(tree))

    def fresh(key: jax.Array) -> Any:
        # The same parameters as model.init(key, images) returns.
        rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        images = jnp.zeros((1, *image_shape), jnp.float32)
        return plain(model.init(rngs, images, **switches(False)))

    with user_code(f"the network cannot be built for images of shape {image_shape}"):
        shape = jax.eval_shape(fresh, key_shape())
    given = {} if variables is None else _checked(plain(variables), shape)

    def name(path: Path) -> str:
        is_param = step(path[0]) == "params" and is_floating(_at(shape, path))
        return join(path[1:] if is_param else path)

    leaves = Leaves(shape, name, in_collections)
    collections = [collection for collection in shape if collection != "params"]

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        return leaves.split(given if set(shape) <= set(given) else {**fresh(key), **given})

    def apply(
        params: Arrays, state: Arrays, images: jax.Array, train: bool, key: Any
    ) -> tuple[Any, Arrays]:
        now = leaves.tree({**params, **state})
        if not train:
            return model.apply(now, images, **switches(False)), state
        # Linen takes streams of other names from "params".
        rngs = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        logits, new = model.apply(now, images, **switches(True), rngs=rngs, mutable=collections)
        return logits, leaves.updated(state, plain(new))

    return Adapted(
        apply=apply, init=init, kind="linen", name=type(model).__name__, image_shape=image_shape
    )  # fmt: skip


def _at(tree: Any, path: Path) -> Any:
    """Returns the leaf at a path of dictionary keys; None if there is none."""
    for key in path:
        tree = tree.get(step(key)) if isinstance(tree, Mapping) else None
    return tree


def _checked(variables: Any, shape: Mapping[str, Any]) -> Any:
    """Returns given variables if they fit a Linen network; raises `UserError` otherwise."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise UserError(
            f"variables are {_described(variables)}: give {{'params': ...}} and further "
            f"collections, as model.init returns them"
        )
    if unknown := sorted(set(variables) - set(shape)):
        raise UserError(
            f"variables have a collection {unknown[0]!r}, the network has "
            f"{', '.join(sorted(shape))}: leave it out"
        )
    expected = {name: shape[name] for name in variables}
    have, want = (
        {join(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (variables, expected)
    )
    for name in sorted(have.keys() ^ want.keys()):
        lack = "the network lacks" if name in have else "the variables lack"
        raise UserError(f"{lack} {name}: give the variables of this network")
    for name, leaf in want.items():
        if not is_array(have[name]) or np.shape(have[name]) != leaf.shape:
            raise UserError(
                f"{name} has shape {np.shape(have[name])} in the variables and {leaf.shape} in "
                f"the network: give the variables of this network"
            )
    return variables


def _described(variables: Any) -> str:
    if isinstance(variables, Mapping):
        return f"a dict of {', '.join(map(str, list(variables)[:3])) or 'nothing'}"
    return f"of type {type(variables).__name__}"
