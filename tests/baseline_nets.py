"""A network, random weights and a run's beginning for the tests of the baselines."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from pruning_nets import quick_jit

from irp_jax import models
from irp_jax.models import Conv, Dense, Norm
from irp_jax.training import phases


class Net(nn.Module):
    """Two convolutions; with `skip` a third writes the same channels as the first."""

    a: int = 16
    b: int = 16
    classes: int = 3
    skip: bool = False

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(Norm("a", name="norm1")(Conv(self.a, None, "a", name="first")(images), train))
        if self.skip:
            x = x + Conv(self.a, "a", "a", name="third")(x)
        x = nn.relu(Norm("b", name="norm2")(Conv(self.b, "a", "b", name="second")(x), train))
        return Dense(self.classes, "b", None, name="classifier")(x.mean((1, 2)))


SHAPE = (8, 8, 1)


def described(net):
    return models.describe(net, SHAPE)


@functools.cache
def variables(net, seed=0):
    init = quick_jit(lambda key: net.init(key, jnp.zeros((1, *SHAPE)), train=False))
    return init(jax.random.key(seed))


def random_weights(net, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables(net)["params"]
    )


def begun(config, net, seed=0):
    """The dense architecture, the plan for 96 images and the state before the first step."""
    dense = described(net)
    plan = phases.plan(config, dense, 96)
    state = quick_jit(functools.partial(phases.initial_state, config, plan, dense))
    return dense, plan, state(variables(net, seed))
