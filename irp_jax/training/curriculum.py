"""Small perturbations first: the radius trained against grows linearly to the one asked for.

At the full radius, training on attacks of one step may overfit to that step within the first epoch
(docs/design.md). A warm-up of the radius is from Qin et al. 2019 ("Adversarial robustness through
local linearization"); for training on attacks of many steps Pang et al. 2021 ("Bag of tricks for
adversarial training") found it to make no difference.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.attacks import Threat


def threat_at(threat: Threat, step: jax.Array | np.ndarray | int, epsilon_steps: int) -> Threat:
    """What the network is trained against at a step.

    Args:
        threat: what it shall be robust against in the end.
        step: () int32, steps taken since the start of the run.
        epsilon_steps: steps in which the radius grows; at 0 it is the full one throughout.

    Returns:
        The ball of radius epsilon * min(1, (step + 1) / epsilon_steps), which is never empty.
    """
    if not epsilon_steps:
        return threat
    share = jnp.minimum(1.0, (step + 1) / epsilon_steps)
    return dataclasses.replace(threat, epsilon=threat.epsilon * share)
