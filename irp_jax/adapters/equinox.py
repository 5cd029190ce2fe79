"""Adapter for Equinox networks."""

from typing import Any

import jax
import jax.numpy as jnp

from irp_jax.adapters.adapted import Adapted, Shape
from irp_jax.adapters.calls import BATCH, keys_of, switches_of, user_code
from irp_jax.adapters.leaves import Arrays, Leaves, in_collections, join
from irp_jax.errors import UserError


def adapt(model: Any, memory: Any, image_shape: Shape) -> Adapted:
    import equinox

    name, call = type(model).__name__, type(model).__call__
    switches, keys = switches_of(call), keys_of(call)

    def is_index(node: Any) -> bool:
        return isinstance(node, equinox.nn.StateIndex)

    nodes, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_index)
    found = {node.marker: (join(path), node) for path, node in nodes if is_index(node)}
    if found and memory is None:
        raise UserError(
            f"{name} has state, {next(iter(found.values()))[0]}: give the pair that "
            f"equinox.nn.make_with_state({name})(...) returns"
        )
    # A layer that is used twice has one state and one marker. Its name is that of its last use.
    indices = dict(found.values())
    weights, rest = equinox.partition(model, equinox.is_inexact_array)
    with user_code(f"the state of {name} cannot be read"):
        values = {where: memory.get(index) for where, index in indices.items()}
    start = {"params": weights, "state": values}
    leaves = Leaves(start, lambda path: join(path[1:]), in_collections)

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        return leaves.split(start)

    def apply(
        params: Arrays, state: Arrays, images: jax.Array, train: bool, key: Any
    ) -> tuple[Any, Arrays]:
        tree = leaves.tree({**params, **state})
        network = equinox.combine(tree["params"], rest)
        network = equinox.nn.inference_mode(network, value=not train)
        now = jax.tree.map(lambda leaf: leaf, memory)  # setting a value invalidates the old State
        for where, index in indices.items():
            now = now.set(index, tree["state"][where])

        def one(image: jax.Array, key: Any) -> tuple[Any, Any]:
            arguments = {**switches(train), **keys(train, key)}
            if memory is None:
                return network(image, **arguments), None
            return network(image, now, **arguments)

        own = jax.random.split(key, images.shape[0]) if train and keys(True, key) else None
        logits, now = jax.vmap(one, out_axes=(0, None), axis_name=BATCH)(
            jnp.transpose(images, (0, 3, 1, 2)), own
        )
        if not train:
            return logits, state
        new = {where: now.get(index) for where, index in indices.items()}
        return logits, leaves.updated(state, {"state": new})

    return Adapted(
        apply=apply, init=init, kind="equinox", name=name, image_shape=image_shape
    )  # fmt: skip
