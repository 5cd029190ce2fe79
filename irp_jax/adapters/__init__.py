"""Converts networks of Flax and Equinox, and plain functions, to the form `irp_jax.graph` needs.

A library is imported here only once a network of that library is given. The caller has then
imported it already.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax.adapters import equinox, function, linen, nnx
from irp_jax.adapters.adapted import Adapted, Shape
from irp_jax.adapters.calls import key_shape, name_of, user_code
from irp_jax.adapters.leaves import Arrays
from irp_jax.errors import UserError

ACCEPTED = (
    "a flax.linen module, a flax.nnx module, an equinox module, a pair (module, state) from "
    "equinox.nn.make_with_state, or a pair (apply, variables)"
)

TRIED = 2
"""Number of images in the batch that checks whether a network runs."""


def adapt(model: Any, image_shape: Shape, variables: Mapping[str, Any] | None = None) -> Adapted:
    """Returns a network of any of these kinds as a pure function of named arrays.

    - `flax.linen.Module`: called as `model.apply(variables, images)`. All collections except
      "params" are state. Their names begin with the collection: "batch_stats/norm/mean".
    - `flax.nnx.Module`: `nnx.Param` are params, all other variables are state. The keys of its
      random streams are neither: in training they are derived from the key.
    - `equinox.Module`, or a pair of it and its `equinox.nn.State`: called for one image (C, H, W)
      under `jax.vmap` with the axis name "batch". Floating-point arrays of the module are params,
      those of the `State` are state.
    - (apply, variables): called as `apply(variables, images)`, returns logits. Floating-point
      arrays in the pytree of variables are params. If it is a dictionary with the key "params",
      only those below that key are. Everything else is constant.

    The network learns whether it is trained from the keywords of its call that are in `TRAINING`
    and `INFERENCE`, if it has any, and from the mode of NNX and Equinox modules. A keyword `key`
    gets a key in training: Equinox modules get one for each image, functions one for the batch. In
    inference it is left out if it has a default; otherwise it gets a fixed key.

    A network that already has weights (NNX, Equinox, variables given) starts from them.

    State consists of arrays that training changes without gradients. Counters in it keep their
    integer dtype. Integer arrays among the params of Flax networks count as state.

    Args:
        model: the network.
        image_shape: (H, W, C) of one image.
        variables: the initial weights, for Linen only: {"params": ..., "batch_stats": ...}, a dict
            or `FrozenDict`. Collections other than "params" that are missing are initialised. None
            initialises all.

    Raises:
        UserError: the model is of another kind, it cannot be run on such images in inference or in
            training, two of its arrays would have the same name, or the variables do not fit.
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
        with user_code(f"{adapted.name} cannot be run in {mode} on images of shape {image_shape}"):
            call = functools.partial(_call, adapted.apply, train)
            jax.eval_shape(call, params, state, images, key_shape())
    return adapted


def shapes(adapted: Adapted) -> tuple[Arrays, Arrays]:
    """Returns the shapes and dtypes of a network's arrays without computing the arrays.

    Args:
        adapted: the network.

    Returns:
        (params, state), each name -> `jax.ShapeDtypeStruct`.

    Raises:
        UserError: the network's own code fails.
    """
    with user_code(f"the network cannot be built for images of shape {adapted.image_shape}"):
        return jax.eval_shape(adapted.init, key_shape())


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
                f"own weights: leave variables out"
            )
        if kind == "linen" and given is model:
            return linen.adapt(given, image_shape, variables)
        if kind == "nnx" and given is model:
            return nnx.adapt(given, image_shape)
        if kind == "equinox" and (given is model or _is_stateful(model)):
            return equinox.adapt(given, None if given is model else model[1], image_shape)
        fix = {
            "linen": "give the module alone, and its weights as variables",
            "nnx": "give the module alone: it has its weights",
            "equinox": "give the module alone, or with its equinox.nn.State",
        }
        raise UserError(
            f"a tuple of {type(given).__name__}, a {library} module, and something else: "
            f"{fix[kind]}"
        )
    if isinstance(model, tuple) and len(model) == 2 and callable(given):
        if variables is not None:
            raise UserError(
                f"weights are given twice for {name_of(given)}, in the pair and as variables: "
                f"leave variables out"
            )
        return function.adapt(given, model[1], image_shape)
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


__all__ = ["Adapted", "adapt", "shapes"]
