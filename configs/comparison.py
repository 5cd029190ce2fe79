r"""ResNet20 on CIFAR-10 by every pruning method, at equal training time.

    bin/sweep --config=comparison --jobs=1 --attacks=pgd-50-10 --images=1000 \
        --results=results/comparison

The epochs are chosen so that each method takes about 25 minutes on two CPU cores. Epochs of a small
network are faster, so a method whose network is small early gets more of them. Width scaling runs a
second time with the epochs of `lagrangian`.

With so few epochs, small batches, which give more steps, and a long warm-up of the radius are
better; both were chosen on held-out images (results/choices_short_runs.json). The sparsity schedule
is long, so that masks are learned at the full radius and the dense network has learnt something
before it is pruned. The rho of Robust ADMM makes up for its short ADMM stage: the sum of rho times
the learning rate is 1.3 at 0.04 M, as in the authors' 200 epochs, and 0.9 at 0.16 M. On held-out
images, a rho above the default was equal or better with CIFAR-10 at 0.04 M, and worse with digits
at 0.04 (results/trials_admm).
"""

import dataclasses

from irp_jax.config import Config

EPOCHS = {
    "0.04M": {"lagrangian": 8, "hinge": 7, "admm": 9, "width": 20, "magnitude": 12},
    "0.16M": {"lagrangian": 7, "hinge": 7, "admm": 8, "width": 8, "magnitude": 9},
}

SHORT = Config(
    model="resnet20",
    cost="params",
    batch_size=64,
    epsilon_warmup=0.4,
    prune_start=0.1,
    prune_stop=0.6,
)

TUNED = {"admm": {"admm_rho": 5e-3}}


def runs(budget: str) -> list[Config]:
    """Returns in-train pruning first, then width scaling at the same epochs, then the others."""
    epochs = EPOCHS[budget]
    plan = list(epochs.items())
    plan.insert(1, ("width", epochs["lagrangian"]))
    return [
        dataclasses.replace(
            SHORT, budget=budget, method=method, epochs=count, **TUNED.get(method, {})
        )
        for method, count in plan
    ]


configs = [run for budget in EPOCHS for run in runs(budget)]
