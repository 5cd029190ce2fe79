"""A network ready to be trained: its channel graph, and itself on arrays of any width."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from irp_jax import adapters, graph, models
from irp_jax.graph import ChannelGraph, Network
from irp_jax.pruning import slim


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TracedModel:
    """A network as its author wrote it, traced.

    Attributes:
        name: what it is called.
        spec: how it is built again: {"name", "width"} of one of our models, {"file"} of a user's
            "FILE.py:NAME", {"class"} of an object that was given.
        graph: its channels, layers and cost.
        network: (params, state, images, train, key) -> (logits, state), for arrays of any width.
        init: key -> (params, state), each name -> array.
    """

    name: str
    spec: dict[str, Any]
    graph: ChannelGraph
    network: Network
    init: Callable[[jax.Array], tuple[dict[str, Any], dict[str, Any]]]


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
        variables: weights to start from; None for those of the model, or new ones.
        spec: see `TracedModel`.

    Raises:
        UserError: it takes no such images, or does not return a logit for each class.
    """
    adapted = adapters.adapt(model, image_shape, variables)
    params, state = adapters.shapes(adapted)
    found = graph.build(adapted.apply, params, state, image_shape, classes)
    return TracedModel(
        name=adapted.name,
        spec=spec or {"class": adapted.name},
        graph=found,
        network=graph.network(adapted.apply, found, params, state),
        init=adapted.init,
    )


def named(
    name: str, width: float, image_shape: tuple[int, int, int], classes: int, seed: int = 0
) -> TracedModel:
    """One of our models, or a user's.

    Args:
        name: a key of `models.MODELS`, or "FILE.py:NAME".
        width: multiplies every channel count of one of our models.
        image_shape: (H, W, C) of one image.
        classes: number of logits.
        seed: of the weights of a user's NNX or Equinox model, which has them from the beginning.

    Raises:
        UserError: there is no such model, or as `trace`.
    """
    if models.is_file(name):
        model = models.from_file(name, classes, seed)
        return trace(model, image_shape, classes, spec={"file": name})
    model = models.build(name, classes, width)
    return trace(model, image_shape, classes, spec={"name": name, "width": width})


def check(model: TracedModel) -> float:
    """Compares the masked with the cut network by value: see `slim.check`."""
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    return slim.check(model.graph, model.network, params, state)
