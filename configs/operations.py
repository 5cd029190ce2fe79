r"""In-train pruning beside its published rule: 0.7, 0.5 and 0.3 of the operations, on digits.

    bin/sweep --config=operations --results=results/operations

The published table's budgets and networks (ResNet20 and ResNet56 on CIFAR-10 there), on images that
two CPU cores can train on in minutes: both rules for the same epochs, with the same defense.
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
