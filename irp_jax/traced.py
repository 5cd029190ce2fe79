"""A traced network: its channel graph, and a function that accepts arrays of any width."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax import adapters, graph, models, prng
from irp_jax.errors import UserError
from irp_jax.graph import Apply, ChannelGraph, program
from irp_jax.pruning import compaction
from irp_jax.quantization import check_trainable


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TracedModel:
    """A traced network.

    Attributes:
        name: the network's name.
        spec: how to build it again: {"name", "width", "activation"} for a model of this
            package; {"file"} for a user's "FILE.py:NAME"; {"class"} for an
            object.
        graph: its channel graph.
        network: (params, state, images, train, key) -> (logits, state), for arrays of any width.
        init: key -> (params, state), each name -> array.
    """

    name: str
    spec: dict[str, Any]
    graph: ChannelGraph
    network: Apply
    init: Callable[[jax.Array], tuple[dict[str, Any], dict[str, Any]]]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the network computes, and of how its weights are drawn or given."""

        def arrays(key: jax.Array) -> list[Any]:
            return jax.tree.leaves(self.init(key))

        key = jax.eval_shape(lambda: prng.key(0))
        return program.fingerprint(program.trace(arrays, key), self.graph.fingerprint)


def trace(
    model: Any,
    image_shape: tuple[int, int, int],
    classes: int | None = None,
    *,
    variables: Any = None,
    spec: dict[str, Any] | None = None,
) -> TracedModel:
    """Traces a network.

    Args:
        model: the network, see `adapters.adapt`.
        image_shape: (H, W, C) of one image.
        classes: number of logits that the network must have; None accepts any number.
        variables: initial weights: the collections of a Linen module, or the `variables` of an
            unpruned `Network` of this model. None uses the model's own weights, or draws new ones.
        spec: see `TracedModel`.

    Raises:
        UserError: the network does not accept such images, does not return one logit for each
            class, or the variables do not fit it.
    """
    named_arrays = _are_named(variables)
    adapted = adapters.adapt(model, image_shape, None if named_arrays else variables)
    params, state = adapters.shapes(adapted)
    found = graph.build(adapted.apply, params, state, image_shape, classes)
    init = adapted.init
    if named_arrays:
        given = variables["params"], variables["batch_stats"]
        _check_given(given, (params, state))

        def init(key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
            return jax.tree.map(jnp.array, given)

    return TracedModel(
        name=adapted.name,
        spec=spec or {"class": adapted.name},
        graph=found,
        network=graph.network(adapted.apply, found, params, state),
        init=init,
    )


def _are_named(variables: Any) -> bool:
    """Returns whether these are `Network.variables`: flat dictionaries of named arrays."""
    if not isinstance(variables, Mapping) or set(variables) != {"params", "batch_stats"}:
        return False
    return all(
        isinstance(group, Mapping) and all(hasattr(array, "shape") for array in group.values())
        for group in variables.values()
    )


def _check_given(given: Any, wanted: Any) -> None:
    """Checks that arrays have the names and shapes of the dense model's arrays.

    Raises:
        UserError: an array differs; the message names the first.
    """
    for arrays, shapes in zip(given, wanted, strict=True):
        for name in sorted({*arrays, *shapes}):
            if name not in arrays or name not in shapes:
                which = "lack" if name not in arrays else "have"
                raise UserError(
                    f"the variables {which} {name}, unlike the model: give this model's variables"
                )
            if arrays[name].shape != shapes[name].shape:
                raise UserError(
                    f"{name} has shape {arrays[name].shape} in the variables and "
                    f"{shapes[name].shape} in the model: give the variables of an unpruned "
                    f"network, for instance one trained with budget=1.0"
                )


def named(
    name: str,
    width: float,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int = 0,
    activation: str = "relu",
) -> TracedModel:
    """Traces a model of this package, or a user's model from a file.

    Args:
        name: a key of `models.MODELS`, or "FILE.py:NAME".
        width: factor of every channel count; for models of this package only.
        image_shape: (H, W, C) of one image.
        classes: number of logits.
        seed: seed of the initial weights of a user's NNX or Equinox model, which are drawn when the
            model is built.
        activation: a key of `models.ACTIVATIONS`; for models of this package only.

    Raises:
        UserError: there is no such model, or an error of `trace`.
    """
    if models.is_file(name):
        model = models.from_file(name, classes, seed)
        return trace(model, image_shape, classes, spec={"file": name})
    spec = {"name": name, "width": width, "activation": activation}
    model = models.build(name, classes, width, activation, image_shape)
    return trace(model, image_shape, classes, spec=spec)


def is_drawn(model: TracedModel) -> bool:
    """Returns whether the initial weights depend on the key. Given weights do not."""
    init = jax.jit(model.init)
    pair = [jax.tree.leaves(init(prng.key(seed))) for seed in (0, 1)]
    return any(bool((one != other).any()) for one, other in zip(*pair, strict=True))


def check(model: TracedModel) -> float:
    """Compares the masked with the compact network by value: see `compaction.check`."""
    params, state = jax.eval_shape(model.init, prng.key(0))

    def initial() -> tuple[dict[str, Any], dict[str, Any]]:
        return jax.device_get(jax.jit(model.init)(prng.key(0)))

    return compaction.check(model.graph, model.network, params, state, initial)


def check_quantized(model: TracedModel, batch: int) -> None:
    """Checks that a network can be trained in 8 bits: see `quantization.check_trainable`."""
    params, state = jax.eval_shape(model.init, prng.key(0))
    images = jax.ShapeDtypeStruct((batch, *model.graph.image_shape), jnp.float32)
    check_trainable(model.network, {"params": params, "batch_stats": state}, images)
