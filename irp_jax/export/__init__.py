"""Trained networks as files that other runtimes read: ONNX and StableHLO.

    network = irp_jax.load("runs/x")
    network.export("model.onnx")
    figures = verify("model.onnx", network)

`export.onnx` writes operators, `export.stablehlo` what JAX has, `export.artifact` reads either
again, and `export.compare` puts file and network side by side on the same images.
"""

from irp_jax.export.compare import check_network, verify
from irp_jax.export.file import FORMATS, check_asked, write

__all__ = ["FORMATS", "check_asked", "check_network", "verify", "write"]
