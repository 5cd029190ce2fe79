"""What training minimises: functions of logits."""

import jax
import jax.numpy as jnp
import optax


def soft_targets(
    labels: jax.Array,
    classes: int,
    smoothing: float = 0.0,
    taught: jax.Array | None = None,
    weight: float = 0.0,
) -> jax.Array:
    """What a network is to answer: the labels, smoothed, and in part what a teacher answers.

    Label smoothing is from Szegedy et al. 2016, section 7; a target that is in part the answer of a
    larger network from Hinton, Vinyals & Dean 2015, section 2, here at temperature 1.

    Args:
        labels: (N,) integer in [0, K).
        classes: K.
        smoothing: probability mass of the label spread evenly over all classes, in [0, 1).
        taught: (N, K) probabilities of a teacher; None for none.
        weight: share of the target that is the teacher's, in [0, 1].

    Returns:
        (N, K) float32, rows that sum to one.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)
    return targets if taught is None else (1 - weight) * targets + weight * taught


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy.

    Args:
        logits: (N, K) float.
        targets: (N,) integer labels in [0, K), or (N, K) probabilities.

    Returns:
        () of the logits' dtype.
    """
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1])
    return optax.softmax_cross_entropy(logits, targets).mean()


def kl_divergence(natural: jax.Array, other: jax.Array) -> jax.Array:
    """Mean Kullback-Leibler divergence KL(softmax(natural) || softmax(other)).

    Args:
        natural, other: (N, K) float logits; gradients flow into both.

    Returns:
        () of the logits' dtype, at least 0 but for rounding.
    """
    expected, found = jax.nn.log_softmax(natural), jax.nn.log_softmax(other)
    return jnp.mean(jnp.sum(jnp.exp(expected) * (expected - found), axis=-1))


def squared_distance(logits: jax.Array, other: jax.Array) -> jax.Array:
    """Mean over images and classes of the squared difference of two (N, K) arrays of logits."""
    return jnp.mean(jnp.square(logits - other))
