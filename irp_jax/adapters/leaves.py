"""Conversion between a network's pytree and flat dictionaries of named arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from irp_jax.errors import UserError

Arrays = dict[str, Any]
"""Name -> array, for instance "stage1_block0/conv1/kernel"."""

Path = tuple[Any, ...]
"""The JAX keys that lead to a leaf of a pytree."""


def join(path: Path) -> str:
    """Returns a leaf's name: the attributes, keys and indices of its path, joined by "/"."""
    return "/".join(str(step(key)) for key in path)


def step(key: Any) -> Any:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key


def is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_floating(leaf: Any) -> bool:
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


class Leaves:
    """Converts a pytree to flat dictionaries of arrays, and back.

    Attributes:
        params: names of the trained arrays.
        state: names of the other arrays.
    """

    def __init__(
        self,
        tree: Any,
        name: Callable[[Path], str],
        kind: Callable[[Path, Any], str | None],
    ) -> None:
        """Names the arrays of a tree.

        Args:
            tree: any pytree.
            name: path -> name.
            kind: (path, array) -> "params", "state", or None for a constant.
        """
        pairs, self.structure = jax.tree_util.tree_flatten_with_path(tree)
        self.name, self.kind = name, kind
        self.places: list[str | None] = []
        self.leaves = [leaf for _, leaf in pairs]
        self.params: list[str] = []
        self.state: list[str] = []
        owners: dict[str, str] = {}
        for path, leaf in pairs:
            what = kind(path, leaf) if is_array(leaf) else None
            self.places.append(None if what is None else name(path))
            if what is None:
                continue
            where = jax.tree_util.keystr(path)
            if name(path) in owners:
                raise UserError(
                    f"two arrays of the network are named {name(path)!r}, at "
                    f"{owners[name(path)]} and {where}: rename one"
                )
            owners[name(path)] = where
            (self.params if what == "params" else self.state).append(name(path))

    def flat(self, tree: Any) -> Arrays:
        """Returns the named arrays of a tree, which may have more or fewer than the original."""
        pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {
            self.name(path): leaf
            for path, leaf in pairs
            if is_array(leaf) and self.kind(path, leaf) is not None
        }

    def split(self, tree: Any) -> tuple[Arrays, Arrays]:
        """Returns copies of the arrays of a tree: (params, state).

        Training may donate its arrays. Copies keep the user's network usable.
        """
        arrays = self.flat(tree)
        params, state = (
            {name: jnp.array(arrays[name], arrays[name].dtype) for name in names}
            for names in (self.params, self.state)
        )
        return params, state

    def tree(self, arrays: Mapping[str, Any]) -> Any:
        """Returns the original tree with these arrays in it."""
        leaves = [
            leaf if place is None else _typed(arrays[place], leaf)
            for place, leaf in zip(self.places, self.leaves, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def updated(self, state: Arrays, tree: Any) -> Arrays:
        """Returns the state with the values of a tree. Arrays that the tree adds are left out."""
        arrays = self.flat(tree)
        return {name: jnp.asarray(arrays.get(name, old), old.dtype) for name, old in state.items()}


def _typed(array: Any, leaf: Any) -> Any:
    """Returns an array with the weak type of the leaf that it replaces.

    Named arrays have no weak type. Weak types determine the dtypes of results, and Equinox requires
    that states keep theirs.
    """
    if not getattr(leaf, "weak_type", False):
        return array
    # JAX has no public function for this.
    return primitives.convert_element_type_p.bind(
        array, new_dtype=array.dtype, weak_type=True, sharding=None
    )


def in_collections(path: Path, leaf: Any) -> str:
    """Returns "params" for a floating-point array below "params", else "state"."""
    return "params" if step(path[0]) == "params" and is_floating(leaf) else "state"
