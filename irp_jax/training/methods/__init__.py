"""How the network is made small: which masks there are, what moves them, and what stays."""

from irp_jax.training.methods.baselines import Admm, Magnitude, Width
from irp_jax.training.methods.learned import Hinge, Lagrangian
from irp_jax.training.methods.method import Method

METHODS: dict[str, Method] = {
    "lagrangian": Lagrangian(),
    "hinge": Hinge(),
    "width": Width(),
    "magnitude": Magnitude(),
    "admm": Admm(),
}
"""By their names on the command line."""

__all__ = ["METHODS", "Method"]
