"""Random keys that give the same numbers for every setting of JAX.

JAX has several random generators. A user may choose one for a whole process with
`jax_default_prng_impl`. With the generator "rbg", the numbers drawn for an image depend on the
other images of its batch. So this package always uses one generator.
"""

from typing import Any

import jax
import jax.numpy as jnp

GENERATOR = "threefry2x32"
"""The generator of all keys that this package makes."""


def key(seed: int | jax.Array) -> jax.Array:
    """Returns the key of a seed."""
    return jax.random.key(seed, impl=GENERATOR)


def converted(given: jax.Array) -> jax.Array:
    """Returns a caller's key. If it has another generator, returns a key drawn from it.

    Args:
        given: a key, typed or as raw numbers.
    """
    typed = jnp.issubdtype(given.dtype, jax.dtypes.prng_key)
    kind = jax.random.key_impl(given) if typed else jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
    return given if str(kind) == GENERATOR else like(given, key(0))


def like(given: jax.Array, other: Any) -> jax.Array:
    """Returns a key drawn from `given`, with the generator of `other`."""
    numbers = jax.random.bits(given, jax.random.key_data(other).shape[-1:], "uint32")
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(other))
