"""Loss functions of logits."""

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
    """Returns the target of a network: smoothed labels, mixed with a teacher's probabilities.

    Label smoothing is from Szegedy et al. 2016, section 7. Mixing in the output of a larger network
    is from Hinton, Vinyals & Dean 2015, section 2; the temperature here is 1.

    Args:
        labels: (N,) integer in [0, K).
        classes: K.
        smoothing: probability mass of the label that is spread evenly over all classes, in [0, 1).
        taught: (N, K) probabilities of a teacher; None without a teacher.
        weight: share of the teacher's probabilities in the target, in [0, 1].

    Returns:
        (N, K) float32; each row sums to one.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)
    return targets if taught is None else (1 - weight) * targets + weight * taught


def mean_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy.

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
    """Returns the mean Kullback-Leibler divergence KL(softmax(natural) || softmax(other)).

    Args:
        natural, other: (N, K) float logits; gradients flow into both.

    Returns:
        () of the logits' dtype, at least 0 up to rounding.
    """
    log_found, log_expected = jax.nn.log_softmax(other), jax.nn.log_softmax(natural)
    return optax.losses.kl_divergence_with_log_targets(log_found, log_expected).mean()


def squared_distance(logits: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the mean over images and classes of the squared difference of two (N, K) logits."""
    return jnp.mean(jnp.square(logits - other))
