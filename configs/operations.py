r"""In-train pruning and its published rule at 0.7, 0.5 and 0.3 of the MACs, on digits.

    bin/sweep --config=operations --results=results/operations

Budgets and networks are those of the published table (ResNet20 and ResNet56, there on CIFAR-10). On
digits, two CPU cores train them in minutes. Both rules have the same epochs and the same defense.
"""

import dataclasses

from irp_jax.config import suited

BASE = suited("digits")

configs = [
    dataclasses.replace(BASE, model=model, budget=budget, method=method)
    for model in ("resnet20", "resnet56")
    for budget in ("0.7", "0.5", "0.3")
    for method in ("lagrangian", "hinge")
]
