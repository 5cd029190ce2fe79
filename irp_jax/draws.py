"""Keys of random numbers that give the same numbers whatever JAX is set to.

JAX has several generators, and a user may choose another than its usual one for all of a process
(`jax_default_prng_impl`). With "rbg" what an image is given depends on the batch it travels in.
"""

from typing import Any

import jax
import jax.numpy as jnp

GENERATOR = "threefry2x32"


def key(seed: int | jax.Array) -> jax.Array:
    """The key of a seed."""
    return jax.random.key(seed, impl=GENERATOR)


def steady(given: jax.Array) -> jax.Array:
    """A caller's key as it is; of another generator, a key drawn from it.

    Args:
        given: a key, or one as raw numbers.
    """
    typed = jnp.issubdtype(given.dtype, jax.dtypes.prng_key)
    kind = jax.random.key_impl(given) if typed else jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
    return given if str(kind) == GENERATOR else like(given, key(0))


def like(given: jax.Array, other: Any) -> jax.Array:
    """A key drawn from `given`, of the generator that `other` is of."""
    numbers = jax.random.bits(given, jax.random.key_data(other).shape[-1:], "uint32")
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(other))
