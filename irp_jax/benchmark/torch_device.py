"""Device and precision of PyTorch in the benchmark: the same as those of JAX."""

import os

import jax
import torch

from irp_jax import machine
from irp_jax.errors import UserError

AGREEMENT = {"cpu": 1e-4, "cuda": 1e-3}
"""Largest difference of logits in float32, by device, at which two networks count as the same. On a
GPU it is larger, because convolutions may use Winograd's algorithm."""


def prepare() -> str:
    """Prepares PyTorch before JAX starts. Returns the device of JAX in PyTorch's terms.

    Raises:
        UserError: PyTorch cannot use that device.
    """
    # Otherwise JAX allocates most of a GPU's memory when it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    torch.set_num_threads(machine.cores())
    return device()


def device() -> str:
    """Returns PyTorch's name, "cpu" or "cuda", for the device that JAX uses."""
    platform, count = jax.default_backend(), jax.device_count()
    if platform == "cpu":
        return "cpu"
    advice = "set JAX_PLATFORMS=cpu"
    if platform != "gpu":
        raise UserError(f"JAX runs on a {platform.upper()} here, not usable by PyTorch: {advice}")
    if not torch.cuda.is_available():
        raise UserError(f"JAX runs on a GPU here, but this PyTorch has no CUDA: {advice}")
    if count > 1:
        raise UserError(f"JAX has {count} GPUs and PyTorch takes one: set CUDA_VISIBLE_DEVICES=0")
    return "cuda"


def compute(device: str, *, fast: bool) -> None:
    """Sets the precision of a GPU. A CPU always uses float32.

    Args:
        device: "cpu" or "cuda".
        fast: whether to use TF32, the default of JAX there, instead of float32. In both cases
            PyTorch selects the fastest algorithms by trial, as JAX does.
    """
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = fast
        torch.backends.cuda.matmul.allow_tf32 = fast
        torch.backends.cudnn.benchmark = True


def wait(device: str) -> None:
    """Waits until a GPU has finished its work. On a CPU it has no effect."""
    if device == "cuda":
        torch.cuda.synchronize()
