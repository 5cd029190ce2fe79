"""Adapter for Flax NNX networks."""

from typing import Any

import jax
import jax.numpy as jnp

from irp_jax import prng
from irp_jax.adapters.adapted import Adapted, Shape
from irp_jax.adapters.calls import switches_of
from irp_jax.adapters.leaves import Arrays, Leaves, Path, in_collections, join


def adapt(model: Any, image_shape: Shape) -> Adapted:
    from flax import nnx

    graph, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
    weights, streams, others = states
    switches = switches_of(type(model).__call__)

    def name(path: Path) -> str:
        # An array is the attribute "value" of a variable. Its name leaves that attribute out.
        path = tuple(key for key in path if not isinstance(key, jax.tree_util.GetAttrKey))
        return join(path[1:])

    leaves = Leaves({"params": weights, "state": others}, name, in_collections)

    def seeded(key: jax.Array) -> Any:
        """Returns the random streams with keys derived from this key, and counts of zero."""
        held, structure = jax.tree.flatten(streams)
        for index, leaf in enumerate(held):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                own = jax.random.fold_in(key, index)
                if own.dtype != leaf.dtype:  # the module's keys are of another generator
                    own = prng.like(own, leaf)
                held[index] = jax.random.split(own, leaf.shape) if leaf.shape else own
            else:  # the count of draws
                held[index] = jnp.zeros_like(leaf)
        return jax.tree.unflatten(structure, held)

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        return leaves.split({"params": weights, "state": others})

    def apply(
        params: Arrays, state: Arrays, images: jax.Array, train: bool, key: Any
    ) -> tuple[Any, Arrays]:
        tree = leaves.tree({**params, **state})
        random = seeded(key) if train else streams
        now = nnx.merge(graph, tree["params"], random, tree["state"])
        if train:
            now.train()
        else:
            now.eval()
        logits = now(images, **switches(train))
        if not train:
            return logits, state
        new = nnx.state(now, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
        return logits, leaves.updated(state, {"state": new})

    return Adapted(
        apply=apply, init=init, kind="nnx", name=type(model).__name__, image_shape=image_shape
    )  # fmt: skip
