"""The published method: constant-b hinge, masks learned to the end, no minimum, no guard.

    bin/train --config=published

The publication does not give b and the learning rate of the logits. They have the defaults of
`irp_jax.config.Config`. The 116 epochs follow from the iteration counts of its curves. This length
is not measured yet.
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
