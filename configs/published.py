"""The method as published: constant-b hinge, masks learned to the end, no floors, no guard.

    bin/train --config=published

What the publication leaves open, b and the logits' learning rate, is set to the defaults of
`irp_jax.config.Config`; 116 epochs is what the iteration counts of its curves amount to.
Not measured at this length yet.
"""

from irp_jax.config import Config

config = Config(
    model="resnet20",
    budget="0.16M",
    cost="params",
    method="hinge",
    defense="fgsm-rs",
    guard=False,
    epsilon_warmup=0.0,
    epochs=116,
    schedule="cyclic",
    learning_rate=0.2,
    hinge_strength=1.0,
)
