"""A network ready to be trained: its channel graph, and itself on arrays of any width."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax import adapters, draws, graph, models
from irp_jax.errors import UserError
from irp_jax.graph import Apply, ChannelGraph, program
from irp_jax.pruning import compaction


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TracedModel:
    """A network as its author wrote it, traced.

    Attributes:
        name: what it is called.
        spec: how it is built again: {"name", "width"} of one of our models, and its
            "activation" if it is not "relu", {"file"} of a user's
            "FILE.py:NAME", {"class"} of an object that was given.
        graph: its channels, layers and cost.
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

        key = jax.eval_shape(lambda: draws.key(0))
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
        model: see `adapters.adapt`.
        image_shape: (H, W, C) of one image.
        classes: how many logits it must have; any number if None.
        variables: weights to start from: the collections of a Linen module, or the `variables` of
            a `Network` of this model that is not pruned. None for those of the model, or new ones.
        spec: see `TracedModel`.

    Raises:
        UserError: it takes no such images, or does not return a logit for each class.
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
    """Whether these are `Network.variables`: names with paths, and no nested collections."""
    if not isinstance(variables, Mapping) or set(variables) != {"params", "batch_stats"}:
        return False
    return all(
        isinstance(group, Mapping) and all(hasattr(array, "shape") for array in group.values())
        for group in variables.values()
    )


def _check_given(given: Any, wanted: Any) -> None:
    """Refuses arrays that are not those of the model at its full size.

    Raises:
        UserError: names the first array that differs.
    """
    for arrays, shapes in zip(given, wanted, strict=True):
        for name in sorted({*arrays, *shapes}):
            if name not in arrays or name not in shapes:
                which = "lack" if name not in arrays else "have"
                raise UserError(
                    f"the variables {which} {name}, unlike the model: give those of this model"
                )
            if arrays[name].shape != shapes[name].shape:
                raise UserError(
                    f"{name} has shape {arrays[name].shape} in the variables and "
                    f"{shapes[name].shape} in the model: give variables of a network that is not "
                    f"pruned, trained with budget=1.0 for instance"
                )


def named(
    name: str,
    width: float,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int = 0,
    activation: str = "relu",
) -> TracedModel:
    """One of our models, or a user's.

    Args:
        name: a key of `models.MODELS`, or "FILE.py:NAME".
        width: multiplies every channel count of one of our models.
        image_shape: (H, W, C) of one image.
        classes: number of logits.
        seed: of the weights of a user's NNX or Equinox model, which has them from the beginning.
        activation: of one of our models: a key of `models.ACTIVATIONS`.

    Raises:
        UserError: there is no such model, or as `trace`.
    """
    if models.is_file(name):
        model = models.from_file(name, classes, seed)
        return trace(model, image_shape, classes, spec={"file": name})
    spec = {"name": name, "width": width, "activation": activation}
    return trace(models.build(name, classes, width, activation), image_shape, classes, spec=spec)


def is_drawn(model: TracedModel) -> bool:
    """Whether another key gives other weights: given ones are the same for every key."""
    init = jax.jit(model.init)
    pair = [jax.tree.leaves(init(draws.key(seed))) for seed in (0, 1)]
    return any(bool((one != other).any()) for one, other in zip(*pair, strict=True))


def check(model: TracedModel) -> float:
    """Compares the masked with the cut network by value: see `compaction.check`."""
    params, state = jax.eval_shape(model.init, draws.key(0))

    def initial() -> tuple[dict[str, Any], dict[str, Any]]:
        return jax.device_get(jax.jit(model.init)(draws.key(0)))

    return compaction.check(model.graph, model.network, params, state, initial)
