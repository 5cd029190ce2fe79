"""8-bit integer networks: their emulation in JAX, with gradients, and the ranges it needs.

    network = irp_jax.load("runs/x")
    small = network.quantize(images)      # post-training quantization
    small.evaluate("cifar10", "pgd")      # attacks the emulated 8-bit network
    small.export("model.onnx")            # an 8-bit file

`fake` rounds arrays, `sites` finds the arrays of a network that are rounded, and `emulation` puts
both together. `training.program` trains the emulation if `Config.quantize` is set.
"""

from irp_jax.quantization.emulation import (
    IMAGES,
    SCHEMES,
    Quantization,
    Rounding,
    calibrate,
    calibration_images,
    check_trainable,
    emulated,
)

__all__ = [
    "IMAGES", "SCHEMES", "Quantization", "Rounding", "calibrate", "calibration_images",
    "check_trainable", "emulated",
]  # fmt: skip
