"""What an attack climbs: scalar functions of one example's logits and label."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LogitsFn = Callable[[jax.Array], jax.Array]
"""A classifier: images (N, H, W, C) float32 in [0, 1] -> logits (N, K)."""

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""One example's loss: logits (K,), label () integer -> scalar; larger is worse for the network."""


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], with a gradient that survives a confident network.

    It is computed as softplus(logsumexp of the other logits - the label's logit). The textbook
    form holds the term `p_label - 1`, which rounds to zero in float32 once the label leads by
    about 17, and the attack would then follow half a gradient. This form has no cancellation.

    Args:
        logits: (K,), K >= 2.
        label: () integer in [0, K).

    Returns:
        A non-negative scalar of the logits' dtype.
    """
    others = jax.nn.logsumexp(_without(logits, label))
    return jax.nn.softplus(others - logits[label])


def margin(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The best other logit minus the label's: positive if and only if the label has lost.

    Args:
        logits: (K,), K >= 2.
        label: () integer in [0, K).

    Returns:
        A scalar of the logits' dtype.

    References:
        Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017,
        objective f6 without its cut at zero, for any label but the true one.
    """
    return jnp.max(_without(logits, label)) - logits[label]


def is_correct(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Whether the label is the prediction: the first of the largest logits, as `argmax` has it.

    A network that answers with a NaN has answered wrongly, whatever the label.

    Args:
        logits: (K,).
        label: () integer.

    Returns:
        A scalar bool.
    """
    return (jnp.argmax(logits) == label) & ~jnp.any(jnp.isnan(logits))


def _without(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The logits with the label's own at minus infinity."""
    return jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
