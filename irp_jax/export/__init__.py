"""Exports trained networks to files that other runtimes read: ONNX, LiteRT and StableHLO.

    network = irp_jax.load("runs/x")
    network.export("model.onnx")
    figures = verify("model.onnx", network)

`export.onnx` writes an ONNX model, `export.tflite` a LiteRT model, `export.stablehlo` a function
that JAX runs. `export.artifact` reads these files. `export.verification` compares a file with its
network on the same images.
"""

from irp_jax.export.file import FORMATS, check_asked, write
from irp_jax.export.verification import check_network, verify

__all__ = ["FORMATS", "check_asked", "check_network", "verify", "write"]
