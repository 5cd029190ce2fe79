"""In-train pruning under adversarial training: one run gives a small, robust network.

    import irp_jax as irp

    small = irp.train(Net(), irp.load_data("digits"), budget=0.16, epsilon=0.1)
    logits = small(images)
    print(small.cost)
    small.save("small")
    again = irp.load("small")

Modules are imported on first use, so that `irp_jax.attacks` alone needs nothing but JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irp_jax import attacks, data, hosts, latency, models
    from irp_jax.api import (
        describe,
        from_arrays,
        html_report,
        load,
        load_data,
        load_model,
        measure_latency,
        train,
        train_many,
    )
    from irp_jax.config import Config
    from irp_jax.data import Dataset
    from irp_jax.errors import UserError
    from irp_jax.graph import ChannelGraph
    from irp_jax.network import Network

__version__ = "0.1.0"

_PLACES = {
    "describe": "irp_jax.api",
    "from_arrays": "irp_jax.api",
    "html_report": "irp_jax.api",
    "load": "irp_jax.api",
    "load_data": "irp_jax.api",
    "load_model": "irp_jax.api",
    "measure_latency": "irp_jax.api",
    "train": "irp_jax.api",
    "train_many": "irp_jax.api",
    "Config": "irp_jax.config",
    "ChannelGraph": "irp_jax.graph",
    "Dataset": "irp_jax.data",
    "Network": "irp_jax.network",
    "UserError": "irp_jax.errors",
}

__all__ = [
    "ChannelGraph", "Config", "Dataset", "Network", "UserError", "__version__", "attacks", "data",
    "describe", "from_arrays", "hosts", "html_report", "latency", "load", "load_data", "load_model",
    "measure_latency", "models", "train", "train_many",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in ("attacks", "data", "hosts", "latency", "models"):
        return importlib.import_module(f"irp_jax.{name}")
    raise AttributeError(f"module 'irp_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
