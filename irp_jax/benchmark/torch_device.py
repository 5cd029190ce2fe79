"""Where PyTorch computes, and how: on the device that JAX does, to the same number of digits."""

import os

import jax
import torch

from irp_jax import parallel
from irp_jax.errors import UserError

AGREEMENT = {"cpu": 1e-4, "cuda": 1e-3}
"""Largest difference of logits in whole float32, by device, that still counts as the same network:
a GPU's convolutions may be Winograd's."""


def prepare() -> str:
    """Readies PyTorch, once, before JAX starts; returns its device: that of JAX.

    Raises:
        UserError: PyTorch cannot use that.
    """
    # Else JAX takes most of a GPU's memory for itself as it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    torch.set_num_threads(parallel.cores())
    return device()


def device() -> str:
    """PyTorch's name, "cpu" or "cuda", of what JAX runs on."""
    platform, count = jax.default_backend(), jax.device_count()
    if platform == "cpu":
        return "cpu"
    advice = "set JAX_PLATFORMS=cpu"
    if platform != "gpu":
        raise UserError(f"JAX runs on a {platform.upper()} here, which PyTorch cannot: {advice}")
    if not torch.cuda.is_available():
        raise UserError(f"JAX runs on a GPU here, but this PyTorch has no CUDA: {advice}")
    if count > 1:
        raise UserError(f"JAX has {count} GPUs and PyTorch takes one: set CUDA_VISIBLE_DEVICES=0")
    return "cuda"


def compute(device: str, *, fast: bool) -> None:
    """Sets how a GPU computes; a CPU always does in float32.

    Args:
        device: "cpu" or "cuda".
        fast: in TF32, as JAX does there unless told otherwise; else in whole float32. Either way by
            the fastest algorithms found by trial, as JAX.
    """
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = fast
        torch.backends.cuda.matmul.allow_tf32 = fast
        torch.backends.cudnn.benchmark = True


def wait(device: str) -> None:
    """Returns when a GPU has done what it was given; a CPU always has."""
    if device == "cuda":
        torch.cuda.synchronize()
