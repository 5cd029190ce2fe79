"""The channel graph of any JAX network, derived from its jaxpr. Depends on JAX, not on Flax."""

from irp_jax.graph.build import build
from irp_jax.graph.channels import ChannelGraph, Layer, Whole, Window
from irp_jax.graph.extent import Extent
from irp_jax.graph.replay import Apply, network

__all__ = ["Apply", "ChannelGraph", "Extent", "Layer", "Whole", "Window", "build", "network"]
