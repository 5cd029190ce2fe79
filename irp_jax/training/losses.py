"""What training minimises on the adversarial images."""

import jax
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
