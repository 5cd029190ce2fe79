"""Networks of Flax and Equinox, and plain functions, as the function that `irp_jax.graph` reads.

None of the libraries is imported here before a network of theirs is given: who has such a network
has imported its library.
"""

import contextlib
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from irp_jax.errors import UserError

Arrays = dict[str, Any]
"""Name -> array, for instance "stage1_block0/conv1/kernel"."""

Shape = tuple[int, int, int]
"""(height, width, channels) of an image."""

Path = tuple[Any, ...]
"""JAX's keys of a leaf in a pytree."""

TRAINING = ("train", "training", "is_training")
"""Keywords of a network's call that are True in training."""

INFERENCE = ("deterministic", "use_running_average", "eval", "evaluate", "inference")
"""Keywords of a network's call that are True in inference."""

ACCEPTED = (
    "a flax.linen module, a flax.nnx module, an equinox module, a pair (module, state) from "
    "equinox.nn.make_with_state, or a pair (apply, variables)"
)

BATCH = "batch"
"""Name of the batch axis in Equinox networks."""

TRIED = 2
"""Images in the batch that a network is tried on."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """A network as pure functions of flat dicts of arrays.

    Attributes:
        apply: (params, state, images, train, key) -> (logits, state). Images are (N, H, W, C)
            float32 in [0, 1]. `train` is a Python bool. The key is a typed PRNG key, of which only
            training makes use. Logits are what the network returns, (N, K) if all is well. The
            state has the shapes and dtypes it had; without `train` it is returned unchanged.
        init: key -> (params, state), for `jax.jit` and `jax.eval_shape`, too. Weights that the
            network was given with are returned as copies, whatever the key.
        kind: "linen", "nnx", "equinox" or "function".
        name: of the network's class or function.
        image_shape: (H, W, C) of one image.
    """

    apply: Callable[[Arrays, Arrays, jax.Array, bool, Any], tuple[Any, Arrays]]
    init: Callable[[jax.Array], tuple[Arrays, Arrays]]
    kind: str
    name: str
    image_shape: Shape


def adapt(model: Any, image_shape: Shape, variables: Mapping[str, Any] | None = None) -> Adapted:
    """Makes a network of any of these kinds a pure function of named arrays.

    - `flax.linen.Module`: called as `model.apply(variables, images)`. All collections but "params"
      are state, and their names begin with the collection's: "batch_stats/norm/mean".
    - `flax.nnx.Module`: `nnx.Param` are params, all other variables are state. The keys of its
      random streams are neither: in training they follow from the key.
    - `equinox.Module`, or a pair of it and its `equinox.nn.State`: called for one image (C, H, W)
      under `jax.vmap` with the axis name "batch". Floating arrays of the module are params, those
      of the `State` are state.
    - (apply, variables): called as `apply(variables, images)`, returns logits. Floating arrays in
      the pytree of variables are params; where it is a dictionary with the key "params", only those
      below that key. All else is constant.

    Training and inference are told apart by the keywords of the call that are in `TRAINING` and
    `INFERENCE`, if there are any, and by the mode of NNX and Equinox modules. A keyword `key` of
    Equinox modules and functions gets a key in training: each image its own, or one for the batch.
    In inference it is left out if it has a default, else it is a fixed key.

    A network that has its weights already (NNX, Equinox, variables given) starts from them.

    State is what training changes and gradients do not. Counters in it keep their integer dtype,
    and so do arrays of integers among the params of Flax networks, which count as state.

    Args:
        model: the network.
        image_shape: (H, W, C) of one image.
        variables: for Linen alone, the weights to start from: {"params": ..., "batch_stats": ...},
            a dict or `FrozenDict`. Other collections than "params" may be missing; then they are
            initialised. None initialises all.

    Raises:
        UserError: the model is of another kind, cannot be run on such images in inference or in
            training, two of its arrays would have the same name, or variables do not fit.
    """
    if len(image_shape) != 3 or not all(isinstance(s, int) and s > 0 for s in image_shape):
        raise UserError(f"images of shape {tuple(image_shape)}: give (height, width, channels)")
    height, width, channels = image_shape
    adapted = _adapted(model, (height, width, channels), variables)
    params, state = shapes(adapted)
    if not params:
        raise UserError(f"{adapted.name} has no floating-point arrays: there is nothing to train")
    images = jax.ShapeDtypeStruct((TRIED, *image_shape), jnp.float32)
    for train in (False, True):
        mode = "training" if train else "inference"
        with _user_code(f"{adapted.name} cannot be run in {mode} on images of shape {image_shape}"):
            call = functools.partial(_call, adapted.apply, train)
            jax.eval_shape(call, params, state, images, _key_shape())
    return adapted


def shapes(adapted: Adapted) -> tuple[Arrays, Arrays]:
    """Shapes and dtypes of a network's arrays, without computing them.

    Args:
        adapted: the network.

    Returns:
        (params, state), name -> `jax.ShapeDtypeStruct`.

    Raises:
        UserError: the network's own code fails.
    """
    with _user_code(f"the network cannot be built for images of shape {adapted.image_shape}"):
        return jax.eval_shape(adapted.init, _key_shape())


def _adapted(model: Any, image_shape: Shape, variables: Any) -> Adapted:
    kinds = {"flax.linen": "linen", "flax.nnx": "nnx", "equinox": "equinox"}
    given = model[0] if isinstance(model, tuple) and model else model
    for library, kind in kinds.items():
        known = getattr(sys.modules.get(library), "Module", ())
        if isinstance(given, type) and issubclass(given, known):
            raise UserError(
                f"{given.__name__} is a class of {library}: give an instance of it, such as "
                f"{given.__name__}(...)"
            )
        if not isinstance(given, known):
            continue
        if kind != "linen" and variables is not None:
            raise UserError(
                f"weights are given for {type(given).__name__}, a {library} module, which has its "
                f"own: leave variables out"
            )
        if kind == "linen" and given is model:
            return _linen(given, image_shape, variables)
        if kind == "nnx" and given is model:
            return _nnx(given, image_shape)
        if kind == "equinox" and (given is model or _is_stateful(model)):
            return _equinox(given, None if given is model else model[1], image_shape)
        fix = {
            "linen": "give the module alone, and its weights as variables",
            "nnx": "give the module alone, which has its weights",
            "equinox": "give it alone or with its equinox.nn.State",
        }
        raise UserError(
            f"a tuple of {type(given).__name__}, a {library} module, and something else: "
            f"{fix[kind]}"
        )
    if isinstance(model, tuple) and len(model) == 2 and callable(given):
        if variables is not None:
            raise UserError(
                f"weights are given twice for {_name(given)}, in the pair and as variables: "
                f"leave variables out"
            )
        return _function(given, model[1], image_shape)
    raise UserError(
        f"a network of type {type(model).__module__}.{type(model).__qualname__} is not known: "
        f"give {ACCEPTED}"
    )


def _is_stateful(model: Any) -> bool:
    return len(model) == 2 and isinstance(model[1], sys.modules["equinox"].nn.State)


def _call(
    apply: Callable, train: bool, params: Arrays, state: Arrays, images: Any, key: Any
) -> Any:
    return apply(params, state, images, train, key)


def _key_shape() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


@contextlib.contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Makes an error in a network's own code one line for its author."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        hint = next((text for part, text in _HINTS.items() if part in f"{error!r}"), "")
        raise UserError(f"{what}: {type(error).__name__}: {first}{hint}") from error


_SWITCH = f"give its call a keyword {TRAINING[0]} or {INFERENCE[0]} that tells them apart"

_HINTS = {
    # Of Linen: training gets every key and may change every collection.
    "InvalidRngError": f": it must draw random numbers in training alone; {_SWITCH}",
    "ModifyScopeVariableError": f": it must change its state in training alone; {_SWITCH}",
    "unbound axis name": f": the batch axis of Equinox networks is {BATCH!r}",
}
"""Part of an error's type or message -> what may be done about it."""


# ---- names -----------------------------------------------------------------------------------


def _join(path: Path) -> str:
    """A leaf's name: attributes, keys and indices on the way to it."""
    return "/".join(str(_step(key)) for key in path)


def _step(key: Any) -> Any:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _is_floating(leaf: Any) -> bool:
    return _is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


class _Leaves:
    """A pytree as flat dicts of arrays, and back.

    Attributes:
        params: names of the arrays that are trained.
        state: names of the others.
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
            kind: (path, array) -> "params", "state", or None for what stays as it is.
        """
        pairs, self.structure = jax.tree_util.tree_flatten_with_path(tree)
        self.name, self.kind = name, kind
        self.places: list[str | None] = []
        self.leaves = [leaf for _, leaf in pairs]
        self.params: list[str] = []
        self.state: list[str] = []
        owners: dict[str, str] = {}
        for path, leaf in pairs:
            what = kind(path, leaf) if _is_array(leaf) else None
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
        """The arrays of a tree; it may have more than the one that was named, or fewer."""
        pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {
            self.name(path): leaf
            for path, leaf in pairs
            if _is_array(leaf) and self.kind(path, leaf) is not None
        }

    def split(self, tree: Any) -> tuple[Arrays, Arrays]:
        """Copies of the arrays of a tree: (params, state).

        Training may donate its arrays, and the author's network shall outlive that.
        """
        arrays = self.flat(tree)
        params, state = (
            {name: jnp.array(arrays[name], arrays[name].dtype) for name in names}
            for names in (self.params, self.state)
        )
        return params, state

    def tree(self, arrays: Mapping[str, Any]) -> Any:
        """The tree with these arrays in it."""
        leaves = [
            leaf if place is None else _typed(arrays[place], leaf)
            for place, leaf in zip(self.places, self.leaves, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def updated(self, state: Arrays, tree: Any) -> Arrays:
        """The state after training; what training adds to it, records for instance, is left out."""
        arrays = self.flat(tree)
        return {name: jnp.asarray(arrays.get(name, old), old.dtype) for name, old in state.items()}


def _typed(array: Any, leaf: Any) -> Any:
    """An array with the weak type of the leaf in whose place it is put.

    Named arrays have none. Networks tell by it what types results have, and Equinox requires it of
    states.
    """
    if not getattr(leaf, "weak_type", False):
        return array
    # No function of JAX's does this.
    return primitives.convert_element_type_p.bind(
        array, new_dtype=array.dtype, weak_type=True, sharding=None
    )


def _in_collections(path: Path, leaf: Any) -> str:
    """What an array is, whose path begins with "params" or something else."""
    return "params" if _step(path[0]) == "params" and _is_floating(leaf) else "state"


# ---- how a network is called -----------------------------------------------------------------


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C, for instance
        return {}


def _switches(function: Any) -> Callable[[bool], dict[str, bool]]:
    """Whether to train -> the keyword arguments that tell a network so."""
    names = _parameters(function)
    return lambda train: {
        **{name: train for name in TRAINING if name in names},
        **{name: not train for name in INFERENCE if name in names},
    }


def _keys(function: Any) -> Callable[[bool, Any], dict[str, Any]]:
    """(whether to train, key) -> the keyword argument `key`, where there is one."""
    parameter = _parameters(function).get("key")

    def arguments(train: bool, key: Any) -> dict[str, Any]:
        if parameter is None:
            return {}
        if train:
            return {"key": key}
        # No key is how many tell inference; who must have one gets one.
        needed = parameter.default is inspect.Parameter.empty
        return {"key": jax.random.key(0)} if needed else {}

    return arguments


# ---- the kinds -------------------------------------------------------------------------------


def _linen(model: Any, image_shape: Shape, variables: Any) -> Adapted:
    from flax import core

    switches = _switches(type(model).__call__)

    def plain(tree: Any) -> Any:
        return core.unfreeze(core.meta.unbox(tree))

    def fresh(key: jax.Array) -> Any:
        # The parameters are those of model.init(key, images).
        rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        images = jnp.zeros((1, *image_shape), jnp.float32)
        return plain(model.init(rngs, images, **switches(False)))

    with _user_code(f"the network cannot be built for images of shape {image_shape}"):
        shape = jax.eval_shape(fresh, _key_shape())
    given = {} if variables is None else _checked(plain(variables), shape)

    def name(path: Path) -> str:
        is_param = _step(path[0]) == "params" and _is_floating(_at(shape, path))
        return _join(path[1:] if is_param else path)

    leaves = _Leaves(shape, name, _in_collections)
    collections = [collection for collection in shape if collection != "params"]

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        return leaves.split(given if set(shape) <= set(given) else {**fresh(key), **given})

    def apply(
        params: Arrays, state: Arrays, images: jax.Array, train: bool, key: Any
    ) -> tuple[Any, Arrays]:
        now = leaves.tree({**params, **state})
        if not train:
            return model.apply(now, images, **switches(False)), state
        # Streams of other names draw from that of "params".
        rngs = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        logits, new = model.apply(now, images, **switches(True), rngs=rngs, mutable=collections)
        return logits, leaves.updated(state, plain(new))

    return Adapted(
        apply=apply, init=init, kind="linen", name=type(model).__name__, image_shape=image_shape
    )  # fmt: skip


def _at(tree: Any, path: Path) -> Any:
    """The leaf at a path of dict keys; None where there is none."""
    for key in path:
        tree = tree.get(_step(key)) if isinstance(tree, Mapping) else None
    return tree


def _checked(variables: Any, shape: Mapping[str, Any]) -> Any:
    """Given variables, once they fit a Linen network."""
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
        {_join(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (variables, expected)
    )
    for name in sorted(have.keys() ^ want.keys()):
        lack = "the network lacks" if name in have else "the variables lack"
        raise UserError(f"{lack} {name}: give the variables of this network")
    for name, leaf in want.items():
        if not _is_array(have[name]) or np.shape(have[name]) != leaf.shape:
            raise UserError(
                f"{name} has shape {np.shape(have[name])} in the variables and {leaf.shape} in "
                f"the network: give the variables of this network"
            )
    return variables


def _described(variables: Any) -> str:
    if isinstance(variables, Mapping):
        return f"a dict of {', '.join(map(str, list(variables)[:3])) or 'nothing'}"
    return f"of type {type(variables).__name__}"


def _nnx(model: Any, image_shape: Shape) -> Adapted:
    from flax import nnx

    graph, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
    weights, streams, others = states
    switches = _switches(type(model).__call__)

    def name(path: Path) -> str:
        # An array lies in a variable, as its attribute "value", which goes without saying.
        path = tuple(key for key in path if not isinstance(key, jax.tree_util.GetAttrKey))
        return _join(path[1:])

    leaves = _Leaves({"params": weights, "state": others}, name, _in_collections)

    def seeded(key: jax.Array) -> Any:
        """The random streams, begun anew."""
        held, structure = jax.tree.flatten(streams)
        for index, leaf in enumerate(held):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                own = jax.random.fold_in(key, index)
                held[index] = jax.random.split(own, leaf.shape) if leaf.shape else own
            else:  # how often it was drawn from
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


def _equinox(model: Any, memory: Any, image_shape: Shape) -> Adapted:
    import equinox

    name, call = type(model).__name__, type(model).__call__
    switches, keys = _switches(call), _keys(call)

    def is_index(node: Any) -> bool:
        return isinstance(node, equinox.nn.StateIndex)

    nodes, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_index)
    found = {node.marker: (_join(path), node) for path, node in nodes if is_index(node)}
    if found and memory is None:
        raise UserError(
            f"{name} has state, {next(iter(found.values()))[0]}: give the pair that "
            f"equinox.nn.make_with_state({name})(...) returns"
        )
    # A layer that is used twice has one state, with one marker, and is named where it is used last.
    indices = dict(found.values())
    weights, rest = equinox.partition(model, equinox.is_inexact_array)
    with _user_code(f"the state of {name} cannot be read"):
        values = {where: memory.get(index) for where, index in indices.items()}
    start = {"params": weights, "state": values}
    leaves = _Leaves(start, lambda path: _join(path[1:]), _in_collections)

    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        return leaves.split(start)

    def apply(
        params: Arrays, state: Arrays, images: jax.Array, train: bool, key: Any
    ) -> tuple[Any, Arrays]:
        tree = leaves.tree({**params, **state})
        network = equinox.combine(tree["params"], rest)
        network = equinox.nn.inference_mode(network, value=not train)
        now = jax.tree.map(lambda leaf: leaf, memory)  # setting a value spoils what it is set in
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


def _function(function: Callable, variables: Any, image_shape: Shape) -> Adapted:
    switches, keys = _switches(function), _keys(function)
    parted = isinstance(variables, Mapping) and "params" in variables

    def kind(path: Path, leaf: Any) -> str | None:
        trained = not parted or getattr(path[0], "key", None) == "params"
        return "params" if trained and _is_floating(leaf) else None

    leaves = _Leaves(
        variables,
        lambda path: _join(path) or "params",  # an array alone has no path
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
        apply=apply, init=init, kind="function", name=_name(function), image_shape=image_shape
    )  # fmt: skip
