"""A network, images and settings for the tests of defenses and of the training state."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from pruning_nets import quick_jit

from irp_jax import attacks, parallel, traced
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.data import Augmentation, Split
from irp_jax.inference.function import inference
from irp_jax.training import progress
from irp_jax.training.defenses import Batch, Choice, build
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan
from irp_jax.training.step import Recipe


class Net(nn.Module):
    """A convolution, a norm and a dense layer. All have useful second derivatives."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(16, (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(3)(jnp.square(x).mean((1, 2)))


MODEL = traced.trace(Net(), (6, 6, 2))
NETWORK, GRAPH = MODEL.network, MODEL.graph
THREAT = attacks.linf(8 / 255)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 2), dtype=np.uint8)
IMAGES = PIXELS / np.float32(255)
LABELS = (np.arange(24) % 3).astype(np.int32)
KEY = jax.random.key(3)
CONFIG = Config(budget="0.3", epochs=4, batch_size=8, learning_rate=0.05, prune_stop=0.5)


def initial():
    """Returns the initial variables of `Net`, on the host."""
    params, state = jax.device_get(quick_jit(MODEL.init)(jax.random.key(0)))
    return {"params": params, "batch_stats": state}


def forward(variables, weights=None):
    weights = variables["params"] if weights is None else weights
    return lambda x: NETWORK(weights, variables["batch_stats"], x, train=True)


def logits(variables):
    return lambda x: forward(variables)(x)[0]


def perturb(defense, logits_fn, images=IMAGES, labels=LABELS, memory=None):
    memory = memory or defense.memory(KEY, len(images), images.shape[1:])
    rows = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), memory)
    attack = quick_jit(lambda x, y: defense.perturb(logits_fn, Batch(x, y, THREAT, KEY, rows)))
    return jax.device_get(attack(images, labels))


def recipe(name):
    return Recipe(
        graph=GRAPH, cost_kind="macs", threat=THREAT,
        defense=build(Choice(name, 2), CONFIG), label_smoothing=0.0, ema=0.9,
        augmentation=Augmentation(crop_padding=1, flip=True, cutout=2),
    )  # fmt: skip


def make_setup(config, dataset=PIXELS):
    return progress.Setup(
        config=config,
        identity=configs.identity(config),
        plan=make_plan(config, METHODS[config.method], GRAPH, len(dataset)),
        dataset=types.SimpleNamespace(
            train=Split(images=dataset, labels=np.arange(len(dataset)) % 3), num_classes=3,
            image_shape=dataset.shape[1:], class_names=("a", "b", "c"),
        ),
        model=MODEL, apply=inference(NETWORK), mesh=parallel.mesh(2),
    )  # fmt: skip


def assert_equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
