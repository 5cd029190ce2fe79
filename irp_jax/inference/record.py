"""The record of a network, as `config.json` and checkpoints hold it, and the model it names."""

from collections.abc import Mapping
from typing import Any

from irp_jax import traced
from irp_jax.errors import UserError
from irp_jax.graph import ChannelGraph
from irp_jax.inference import layout
from irp_jax.pruning import cost
from irp_jax.quantization import Quantization


def described(
    record: dict[str, Any], graph: ChannelGraph, keep_counts: dict[str, int], epochs: int
) -> dict[str, Any]:
    """Returns a network's record with keep counts, cost and epochs added."""
    return {
        **record,
        "keep_counts": keep_counts,
        "cost": cost.report(graph, keep_counts),
        "epochs": epochs,
    }


def quantization_of(record: Mapping[str, Any]) -> Quantization | None:
    """Returns the ranges in a network's record; None for a network in float32."""
    return Quantization.of(record["quantization"]) if "quantization" in record else None


def scheme_of(record: Mapping[str, Any]) -> str | None:
    """Returns the quantization scheme in a network's record, or in results; None for float32."""
    found = record.get("quantization")
    return found["scheme"] if isinstance(found, Mapping) else found


def model_of(record: dict[str, Any], model: Any) -> traced.TracedModel:
    """Traces the model that a record names, or the model given.

    Raises:
        UserError: the network was made with another model.
    """
    shape, classes = tuple(record["image_shape"]), len(record["class_names"])
    spec = record["model"]
    if isinstance(model, str):
        known = traced.named(model, 1.0, shape, classes)
    elif model is not None:
        known = traced.trace(model, shape, classes, spec=spec)
    else:
        assert layout.is_ours(spec), "a file that a record names is never run"
        known = traced.named(
            spec["name"], spec["width"], shape, classes, activation=spec["activation"]
        )
    if dict(known.graph.groups) != record["groups"]:
        raise other_model(known.name)
    return known


def other_model(name: str) -> UserError:
    """Returns the error for a network that was made with another model than the one named."""
    return UserError(
        f"the network was not made with this {name}: its layers differ; give the model as it was "
        f"when it was trained"
    )


def stored_name(record: dict[str, Any]) -> str:
    """Returns how a record names a model that is not of this package."""
    return record["model"].get("file") or record["model"]["class"]
