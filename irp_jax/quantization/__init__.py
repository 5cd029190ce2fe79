"""8-bit integer networks: their emulation in JAX, with gradients, and the ranges it needs.

    network = irp_jax.load("runs/x")
    small = network.quantize(images)      # post-training quantization
    small.evaluate("cifar10", "pgd")      # attacks the emulated 8-bit network
    small.export("model.onnx")            # an 8-bit file

`fake` rounds arrays, `sites` finds the arrays of a network that are rounded, and `emulation` puts
both together.
"""

from irp_jax.quantization.emulation import SCHEMES, Quantization, calibrate, emulated

__all__ = ["SCHEMES", "Quantization", "calibrate", "emulated"]
