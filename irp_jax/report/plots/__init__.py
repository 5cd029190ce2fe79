"""Plots for papers and READMEs: a file for each kind. `save` writes one.

They need matplotlib, which belongs to an optional extra.
"""

from irp_jax.report.plots.attack_cost import cost_picture
from irp_jax.report.plots.budgets import budget_picture
from irp_jax.report.plots.curves import curves_picture
from irp_jax.report.plots.images import adversarial_picture
from irp_jax.report.plots.one_run import run_picture
from irp_jax.report.plots.style import save
from irp_jax.report.plots.tradeoff import tradeoff_picture

__all__ = [
    "adversarial_picture", "budget_picture", "cost_picture", "curves_picture", "run_picture",
    "save", "tradeoff_picture",
]  # fmt: skip
