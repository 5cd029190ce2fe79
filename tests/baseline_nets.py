"""A network, random weights and an initial training state for the tests of the baselines."""

import functools

import flax.linen as nn
import jax
import numpy as np
from pruning_nets import quick_jit

from irp_jax import traced
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan
from irp_jax.training.state import initial_state


class Net(nn.Module):
    """Two convolutions. With `skip` a third one writes to the channel group of the first."""

    a: int = 16
    b: int = 16
    classes: int = 3
    skip: bool = False

    @nn.compact
    def __call__(self, images, train):
        def conv(features, name):
            return nn.Conv(features, (3, 3), use_bias=False, name=name)

        def norm(name):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)

        x = nn.relu(norm("norm1")(conv(self.a, "first")(images)))
        if self.skip:
            x = x + conv(self.a, "third")(x)
        x = nn.relu(norm("norm2")(conv(self.b, "second")(x)))
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


SHAPE = (8, 8, 1)


@functools.cache
def traced_net(net):
    return traced.trace(net, SHAPE)


def described(net):
    return traced_net(net).graph


@functools.cache
def variables(net, seed=0):
    params, state = quick_jit(traced_net(net).init)(jax.random.key(seed))
    return {"params": params, "batch_stats": state}


def random_weights(net, seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in sorted(variables(net)["params"].items())
    }


def begun(config, net, seed=0):
    """Returns the graph of the dense network, the plan for 96 images and the initial state."""
    graph = described(net)
    plan = make_plan(config, METHODS[config.method], graph, 96)
    state = quick_jit(functools.partial(initial_state, config, plan, graph))
    return graph, plan, state(variables(net, seed))


class Stopping:
    """A silent reporter that interrupts the run at the end of an epoch, before it is saved."""

    def __init__(self, stop=None):
        self.stop = stop

    def epoch(self, row):
        if row["epoch"] == self.stop:
            raise KeyboardInterrupt

    def __getattr__(self, name):
        return lambda *arguments: None
