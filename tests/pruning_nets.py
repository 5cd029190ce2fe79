"""Networks, masks and an independent operation count for the tests of models and pruning."""

import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.pruning import masks

# Compilation is most of these tests' time, and little of it is worth its while.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

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
    images = rng.uniform(size=(8, *image_shape)).astype(np.float32)
    shapes = abstract_variables(model, image_shape)

    def draw(path, leaf):
        kind, shape = path[-1].key, leaf.shape
        if kind == "kernel":
            values = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
        elif kind == "scale":
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.3, shape)
        return values.astype(np.float32)

    weights = jax.tree_util.tree_map_with_path(draw, shapes["params"])
    zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes["batch_stats"])

    def blur(path, leaf):
        full = 10 * np.asarray(leaf)  # One step with momentum 0.9 from zero.
        if path[-1].key == "mean":
            return full + rng.normal(0, 0.2, full.shape).astype(np.float32)
        return (full + 1e-3) * rng.uniform(0.7, 1.5, full.shape).astype(np.float32)

    variables = {"params": weights, "batch_stats": zero}
    network = quick_jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    _, new = network(variables, images)
    batch_stats = jax.tree_util.tree_map_with_path(blur, new["batch_stats"])
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


def trace(function, *arguments):
    """The operations of a call as the definition of the layers has them, and the output's shapes.

    On a CPU a convolution does more than its definition, in order to be faster.
    """
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        return jax.make_jaxpr(function, return_shape=True)(*arguments)


def traced_macs(jaxpr):
    """Multiply-accumulates of one call, read off the convolutions and products in its trace.

    Knows nothing of layers; counts padding like the field does, as if it were image.
    """
    count = 0
    for equation in equations(jaxpr):
        shapes = [variable.aval.shape for variable in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "conv_general_dilated":
            kernel = shapes[1]
            assert equation.params["dimension_numbers"].rhs_spec == (3, 2, 0, 1)
            count += out * math.prod(kernel[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            count += out * math.prod(shapes[0][axis] for axis in contracted)
    return count


def equations(jaxpr):
    """All operations of a trace, those of functions it calls included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(getattr(value, "jaxpr", value), "eqns"):
                yield from equations(value)
