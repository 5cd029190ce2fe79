"""Networks, masks and an independent operation count for the tests of models and pruning."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.pruning import masks

IMAGE_SHAPES = ((8, 8, 1), (28, 28, 1), (32, 32, 3))


def abstract_variables(model, image_shape):
    """What `model.init` returns, shapes only."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)


def elements(tree):
    """Number of array entries in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_variables(model, image_shape, seed):
    """Variables in which no norm is neutral, so that a channel that leaks is seen.

    The running statistics are near those of the untrained network, so that no depth drowns or
    explodes the signal.
    """
    rng = np.random.default_rng(seed)
    key = jax.random.key(seed)
    images = jax.random.uniform(key, (8, *image_shape))
    variables = jax.jit(lambda k: model.init(k, images, train=False))(key)

    def perturb(path, leaf):
        kind = path[-1].key
        if kind == "scale":
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        if kind == "bias":
            return jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)
        return leaf

    weights = jax.tree_util.tree_map_with_path(perturb, variables["params"])
    before = variables["batch_stats"]

    @jax.jit
    def statistics(weights):
        _, new = model.apply(
            {"params": weights, "batch_stats": before}, images, train=True, mutable=["batch_stats"]
        )
        return jax.tree.map(lambda old, now: (now - 0.9 * old) / 0.1, before, new["batch_stats"])

    def blur(path, leaf):
        if path[-1].key == "mean":
            return leaf + jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32)
        factor = rng.uniform(0.7, 1.5, leaf.shape)
        return jnp.maximum(leaf, 1e-3) * jnp.asarray(factor, jnp.float32)

    batch_stats = jax.tree_util.tree_map_with_path(blur, statistics(weights))
    return {"params": weights, "batch_stats": batch_stats}


def random_masks(architecture, regularity, seed, kept=None):
    """Logits of random size and sign: mask name -> `kept` positive ones, at least the floor."""
    rng = np.random.default_rng(seed)
    least = masks.floors(architecture, regularity)
    drawn = {}
    for name, start in masks.init(architecture, regularity).items():
        size = start.size
        count = kept[name] if kept else int(rng.integers(least[name], size + 1))
        sign = np.where(rng.permutation(size) < count, 1.0, -1.0)
        logits = sign * rng.uniform(0.1, 3.0, size)
        drawn[name] = jnp.asarray(logits.reshape(start.shape), jnp.float32)
    return drawn


def kept_units(logits):
    """Mask name -> number of units kept, as Python integers."""
    return {name: int((np.asarray(values) > 0).sum()) for name, values in logits.items()}


def traced_macs(function, *arguments):
    """Multiply-accumulates of one call, read off the convolutions and products in its trace.

    Knows nothing of layers; counts padding like the field does, as if it were image.
    """
    return _macs_in(jax.make_jaxpr(function)(*arguments).jaxpr)


def _macs_in(jaxpr):
    count = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "conv_general_dilated":
            _, kernel = shapes
            assert equation.params["dimension_numbers"].rhs_spec == (3, 2, 0, 1)
            count += out * math.prod(kernel[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            count += out * math.prod(shapes[0][axis] for axis in contracted)
        else:
            count += sum(_macs_in(inner) for inner in jax.core.jaxprs_in_params(equation.params))
    return count
