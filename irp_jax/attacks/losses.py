"""Losses that an attack increases: scalar functions of one example's logits and label."""

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
    """Returns -log softmax(logits)[label], with an exact gradient for a confident network too.

    It is computed as softplus(logsumexp of the other logits - the label's logit). The textbook form
    contains the term `p_label - 1`, which rounds to zero in float32 once the label leads by about
    17. The attack would then lose the half of the gradient that comes from the label's logit. This
    form has no cancellation.

    Args:
        logits: (K,), K >= 2.
        label: () integer in [0, K).

    Returns:
        A non-negative scalar of the logits' dtype.
    """
    others = jax.nn.logsumexp(_without(logits, label))
    return jax.nn.softplus(others - logits[label])


def margin(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Returns the largest other logit minus the label's logit.

    Args:
        logits: (K,), K >= 2.
        label: () integer in [0, K).

    Returns:
        A scalar of the logits' dtype: positive if and only if another class has a larger logit.

    References:
        Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017,
        objective f6 without its clipping at zero, for an untargeted attack.
    """
    return jnp.max(_without(logits, label)) - logits[label]


def dlr(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Returns the difference of logits ratio (DLR).

    It is the margin divided by the difference of the largest and the third largest logit. Shifting
    or scaling the logits does not change it. It therefore has a gradient where the network is so
    confident that the gradient of the cross-entropy vanishes.

    Args:
        logits: (K,), K >= 2; with two classes there is no ratio and the result is the margin.
        label: () integer in [0, K).

    Returns:
        A scalar of the logits' dtype: positive if and only if another class has a larger logit than
        the label, else in [-1, 0].

    References:
        Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", 2020, equation 6.
    """
    if logits.shape[0] < 3:
        return margin(logits, label)
    first, _, third = jax.lax.top_k(logits, 3)[0]
    return margin(logits, label) / (first - third + _TINY)


def targeted_dlr(logits: jax.Array, label: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the targeted DLR: the target's logit minus the label's, divided by a scale.

    The scale is the largest logit minus the mean of the third and the fourth largest.

    Args:
        logits: (K,), K >= 2; with two or three classes the difference is not divided.
        label: () integer in [0, K).
        target: () integer in [0, K), not the label.

    Returns:
        A scalar of the logits' dtype: positive if and only if the target has the larger logit.

    References:
        As for `dlr`, equation 7.
    """
    lead = logits[target] - logits[label]
    if logits.shape[0] < 4:
        return lead
    first, _, third, fourth = jax.lax.top_k(logits, 4)[0]
    return lead / (first - (third + fourth) / 2 + _TINY)


def is_correct(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Returns whether the label is the prediction: the first of the largest logits, as in `argmax`.

    Logits with a NaN count as a wrong prediction, whatever the label.

    Args:
        logits: (K,).
        label: () integer.

    Returns:
        A scalar bool.
    """
    return (jnp.argmax(logits) == label) & ~jnp.any(jnp.isnan(logits))


def _without(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Returns the logits with the label's own set to minus infinity."""
    return jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
