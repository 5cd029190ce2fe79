"""Small perturbations first: the radius trained against grows to the one asked for.

A network that has learnt nothing yet is the easiest to lead astray: within the first epoch of
training on attacks of one step, at the full radius, it may learn to recognise the step before it
has learnt to recognise anything else. A linear warm-up of the radius (Pang et al. 2021, "Bag of
tricks for adversarial training", warm-up on the adversarial intensity) gives it features first.
"""

import dataclasses

import jax
import jax.numpy as jnp

from irp_jax.attacks import Threat


def threat_at(threat: Threat, step: jax.Array | int, warm_up: int) -> Threat:
    """What the network is trained against at a step.

    Args:
        threat: what it shall be robust against in the end.
        step: () int32, steps taken since the start of the run.
        warm_up: steps in which the radius grows linearly; at 0 it is the full one throughout.

    Returns:
        The ball of radius epsilon * min(1, (step + 1) / warm_up), which is never empty.
    """
    if not warm_up:
        return threat
    share = jnp.minimum(1.0, (step + 1) / warm_up)
    return dataclasses.replace(threat, epsilon=threat.epsilon * share)
