"""The fifteen common corruptions of Hendrycks and Dietterich, at the strength of CIFAR-10-C."""

from irp_jax.data.corruptions.table import CORRUPTIONS, SEVERITIES, corrupt

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt"]
