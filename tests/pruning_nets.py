"""Networks, masks and an independent operation count for the tests of models and pruning."""

import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import traced
from irp_jax.pruning import masks

# Compilation takes most of the time of these tests, so XLA's optimisations are off.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# A model is traced only once for all tests of a process.
named = functools.cache(traced.named)

IMAGE_SHAPES = ((8, 8, 1), (28, 28, 1), (32, 32, 3))


def abstract_variables(model):
    """Returns shapes and dtypes of a traced model: {"params", "batch_stats"}, name -> array."""
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    return {"params": params, "batch_stats": state}


def zeros(variables):
    """Returns arrays of zeros on the host, with the shapes of a tree."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)


def elements(tree):
    """Returns the number of array entries in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_variables(model, seed):
    """Returns random variables in which no norm is neutral, so that a leaking channel is noticed.

    The running statistics are near those of the untrained network, so that the signal neither
    vanishes nor explodes in deep networks.
    """
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(8, *model.graph.image_shape)).astype(np.float32)
    shapes = abstract_variables(model)

    def draw(name, leaf):
        kind, shape = name.rpartition("/")[2], leaf.shape
        if kind == "kernel":
            values = rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
        elif kind == "scale":
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.3, shape)
        return values.astype(np.float32)

    weights = {name: draw(name, leaf) for name, leaf in shapes["params"].items()}

    def blur(name, leaf):
        full = 10 * np.asarray(leaf)  # One step with momentum 0.9 from zero.
        if name.endswith("/mean"):
            return full + rng.normal(0, 0.2, full.shape).astype(np.float32)
        return (full + 1e-3) * rng.uniform(0.7, 1.5, full.shape).astype(np.float32)

    step = quick_jit(lambda p, s, x: model.network(p, s, x, train=True)[1])
    new = step(weights, zeros(shapes["batch_stats"]), images)
    return {
        "params": weights,
        "batch_stats": {name: blur(name, leaf) for name, leaf in new.items()},
    }


def random_masks(graph, granularity, seed, keep_counts=None):
    """Returns mask name -> random logits. At least the minimum of them are positive."""
    rng = np.random.default_rng(seed)
    least = masks.min_keep(graph, granularity)
    drawn = {}
    for name, start in masks.init(graph, granularity).items():
        size = start.size
        count = keep_counts[name] if keep_counts else int(rng.integers(least[name], size + 1))
        sign = np.where(rng.permutation(size) < count, 1.0, -1.0)
        logits = sign * rng.uniform(0.1, 3.0, size)
        drawn[name] = jnp.asarray(logits.reshape(start.shape), jnp.float32)
    return drawn


def kept_units(logits):
    """Returns mask name -> number of units kept, as Python integers."""
    return {name: int((np.asarray(values) > 0).sum()) for name, values in logits.items()}


def trace(function, *arguments):
    """Returns the trace of a call and the shapes of its output.

    The trace is as on a GPU, where a convolution is one operation. On a CPU it is several
    operations, in order to be faster.
    """
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        return jax.make_jaxpr(function, return_shape=True)(*arguments)


def traced_macs(jaxpr):
    """Returns the multiply-accumulates of the convolutions and products in a trace.

    It is independent of the channel graph. Products with padding count, as is usual.
    """
    count = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        shapes = [variable.aval.shape for variable in equation.invars]
        if equation.primitive.name == "conv_general_dilated":
            kernel, numbers = shapes[1], equation.params["dimension_numbers"]
            if set(equation.params["lhs_dilation"]) == {1}:
                positions = [equation.outvars[0].aval.shape[i] for i in numbers.out_spec[2:]]
            else:  # the zeros between the pixels of the input do not count
                positions = [shapes[0][i] for i in numbers.lhs_spec[2:]]
            images = equation.outvars[0].aval.shape[numbers.out_spec[0]]
            count += images * math.prod(positions) * math.prod(kernel)
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            out = math.prod(equation.outvars[0].aval.shape)
            count += out * math.prod(shapes[0][axis] for axis in contracted)
        else:
            turns = equation.params["length"] if equation.primitive.name == "scan" else 1
            count += turns * sum(map(traced_macs, called(equation)))
    return count


def called(equation):
    """Returns the traces of the functions that an operation calls."""
    parts = jax.tree.leaves(list(equation.params.values()))
    return [part for part in parts if hasattr(getattr(part, "jaxpr", part), "eqns")]


def equations(jaxpr):
    """Yields all operations of a trace, including those of the functions that it calls."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for part in called(equation):
            yield from equations(part)
