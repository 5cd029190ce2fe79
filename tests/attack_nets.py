"""Small classifiers in plain JAX and a plain loop over attack steps, for the tests of attacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from irp_jax import attacks
from irp_jax.attacks.attack import Problem

_ORDER = ("NHWC", "HWIO", "NHWC")


def conv_net(variables, images):
    """A convolutional network: images (N, H, W, C) -> logits (N, 10)."""
    features = images - jnp.asarray(0.5, images.dtype)
    for kernel in variables["kernels"]:
        features = jax.nn.relu(
            jax.lax.conv_general_dilated(features, kernel, (2, 2), "SAME", dimension_numbers=_ORDER)
        )
    return features.reshape(len(features), -1) @ variables["dense"] + variables["bias"]


def new_conv_net(key):
    """He-normal variables of `conv_net` for images (8, 8, 1)."""
    first, second, last = jax.random.split(key, 3)
    return {
        "kernels": [
            jax.random.normal(first, (3, 3, 1, 8)) * (2 / 9) ** 0.5,
            jax.random.normal(second, (3, 3, 8, 16)) * (2 / 72) ** 0.5,
        ],
        "dense": jax.random.normal(last, (64, 10)) / 8,
        "bias": jnp.zeros(10),
    }


def dense_net(variables, images):
    """A dense network that compiles fast: images (N, 8, 8, 1) -> logits (N, 10)."""
    return jnp.tanh(images.reshape(len(images), -1) @ variables["hidden"]) @ variables["out"]


def new_dense_net(seed=0):
    """Variables of `dense_net`."""
    hidden, out = jax.random.split(jax.random.key(seed))
    return {
        "hidden": jax.random.normal(hidden, (64, 32)) / 8,
        "out": jax.random.normal(out, (32, 10)) / 5,
    }


def digits():
    """Returns (train images, train labels, test images, test labels): uint8 (N, 8, 8, 1), int32."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int32), test_size=360, random_state=0, stratify=labels
    )
    return train_x, train_y, test_x, test_y


@functools.cache
def trained_on_digits(noise=0.2, steps=120):
    """Returns (variables of a `conv_net` trained with pixel noise, test images uint8, labels)."""
    train_x, train_y, test_x, test_y = digits()
    images, labels = jnp.asarray(train_x / np.float32(255), jnp.float32), jnp.asarray(train_y)

    def loss(variables, x, y):
        return -jnp.mean(jax.nn.log_softmax(conv_net(variables, x))[jnp.arange(len(y)), y])

    @jax.jit
    def step(variables, momentum, number):
        draw, jitter = jax.random.split(jax.random.fold_in(jax.random.key(1), number))
        rows = jax.random.randint(draw, (128,), 0, len(images))
        x = images[rows] + jax.random.uniform(jitter, (128, 8, 8, 1), minval=-noise, maxval=noise)
        gradient = jax.grad(loss)(variables, jnp.clip(x, 0, 1), labels[rows])
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        return jax.tree.map(lambda v, m: v - 0.05 * m, variables, momentum), momentum

    variables = new_conv_net(jax.random.key(0))
    momentum = jax.tree.map(jnp.zeros_like, variables)
    for number in range(steps):
        variables, momentum = step(variables, momentum, number)
    return variables, test_x, test_y


def all_trials(attack, logits_fn, images, labels, threat, key):
    """Returns the Problem of all trials, with leading axis N * trials, image by image."""
    logits = logits_fn(images)
    runs = attack.trials(logits.shape[1])
    label_first = jnp.where(jax.nn.one_hot(labels, logits.shape[1], dtype=bool), jnp.inf, logits)
    image, number = jnp.divmod(jnp.arange(len(images) * runs, dtype=jnp.int32), runs)
    return Problem(
        image=images[image],
        label=labels[image],
        order=jnp.argsort(label_first, axis=1, descending=True).astype(jnp.int32)[image],
        number=number,
        key=jax.vmap(attacks.trial_key, (None, 0, 0))(key, image, number),
        threat=threat,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(attack, logits_fn, problem):
    """`attack.start`, compiled."""
    return attack.start(logits_fn, problem)


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(attack, logits_fn, problem, state, number):
    """`attack.step`, compiled."""
    return attack.step(logits_fn, problem, state, number)


def drive(attack, logits_fn, images, labels, threat, key):
    """Runs all trials to their last step: returns an Attacked with leading axes (N, trials)."""
    problem = all_trials(attack, logits_fn, images, labels, threat, key)
    state = start(attack, logits_fn, problem)
    for number in range(attack.steps):
        state = step(attack, logits_fn, problem, state, jnp.full_like(problem.number, number))
    return jax.tree.map(lambda leaf: leaf.reshape(len(images), -1, *leaf.shape[1:]), state.worst)
