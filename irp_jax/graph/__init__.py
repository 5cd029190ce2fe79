"""The channel graph of any JAX network, derived from its jaxpr. Depends on JAX, not on Flax."""

from irp_jax.graph.analysis import Analysis
from irp_jax.graph.building import build
from irp_jax.graph.channels import ChannelGraph, Layer, Whole, Window
from irp_jax.graph.extent import Extent
from irp_jax.graph.program import Equation, Program
from irp_jax.graph.replay import Apply, Operands, network

__all__ = [
    "Analysis", "Apply", "ChannelGraph", "Equation", "Extent", "Layer", "Operands", "Program",
    "Whole", "Window", "build", "network",
]  # fmt: skip
