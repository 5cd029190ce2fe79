"""What an attack climbs: scalar functions of one example's logits and label."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LogitsFn = Callable[[jax.Array], jax.Array]
"""A classifier: images (N, H, W, C) float32 in [0, 1] -> logits (N, K)."""

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""One example's loss: logits (K,), label () integer -> scalar; larger is worse for the network."""


_TINY = 1e-12
"""Keeps a ratio finite where all its logits are equal."""


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


def dlr(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The difference of logits ratio: the margin over the lead of the first logit on the third.

    Shifting or scaling the logits does not change it, so it has a gradient to follow where the
    network is too confident for the cross-entropy to have one.

    Args:
        logits: (K,), K >= 2; of two classes there is no ratio and the result is the margin.
        label: () integer in [0, K).

    Returns:
        A scalar of the logits' dtype: positive if and only if the label has lost, and in [-1, 0]
        as long as it has not.

    References:
        Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", 2020, equation 6.
    """
    if logits.shape[0] < 3:
        return margin(logits, label)
    first, _, third = jax.lax.top_k(logits, 3)[0]
    return margin(logits, label) / (first - third + _TINY)


def targeted_dlr(logits: jax.Array, label: jax.Array, target: jax.Array) -> jax.Array:
    """The lead of one target class on the label, scaled as the logits are.

    Args:
        logits: (K,), K >= 2; with three classes or two it is the plain lead, unscaled.
        label: () integer in [0, K).
        target: () integer in [0, K), another class than the label.

    Returns:
        A scalar of the logits' dtype: positive if and only if the target is ahead of the label.

    References:
        As for `dlr`, equation 7.
    """
    lead = logits[target] - logits[label]
    if logits.shape[0] < 4:
        return lead
    first, _, third, fourth = jax.lax.top_k(logits, 4)[0]
    return lead / (first - (third + fourth) / 2 + _TINY)


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
