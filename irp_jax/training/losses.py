"""What training minimises: functions of logits."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Mean cross-entropy with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        logits: (N, K) float.
        labels: (N,) integer in [0, K).
        smoothing: probability mass spread evenly over all classes, in [0, 1).

    Returns:
        () of the logits' dtype.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def kl_divergence(clean: jax.Array, other: jax.Array) -> jax.Array:
    """Mean Kullback-Leibler divergence KL(softmax(clean) || softmax(other)).

    Args:
        clean, other: (N, K) float logits; gradients flow into both.

    Returns:
        () of the logits' dtype, at least 0 but for rounding.
    """
    expected, found = jax.nn.log_softmax(clean), jax.nn.log_softmax(other)
    return jnp.mean(jnp.sum(jnp.exp(expected) * (expected - found), axis=-1))


def squared_distance(logits: jax.Array, other: jax.Array) -> jax.Array:
    """Mean over images and classes of the squared difference of two (N, K) arrays of logits."""
    return jnp.mean(jnp.square(logits - other))
