"""Builds a channel graph from a function: traces it, runs the rules, names groups and layers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import prng
from irp_jax.errors import UserError
from irp_jax.graph.analysis import Analysis
from irp_jax.graph.axes import BATCH, Axis, is_whole, keep, leaves, reason, root, tie
from irp_jax.graph.channels import Arrays, ChannelGraph, Layer, Whole, solve
from irp_jax.graph.contraction import Contraction, positions
from irp_jax.graph.extent import Extent, axis_of, extent_of
from irp_jax.graph.program import Program, fingerprint, is_alike, trace

Function = Any
"""A network as a pure function: (params, state, images, train, key) -> (logits, state).

Params and state are `Arrays`; images are (N, H, W, C) float32 in [0, 1]; `train` is a Python bool;
the key is for the random numbers of training.
"""

TRACED = 2
"""Number of images in the batch that the graph is traced with."""

WEIGHTS = ("kernel", "weight", "w")
"""Last parts of a kernel's name that the layer's name leaves out."""


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and dtype of each array, by name."""
    return {n: jax.ShapeDtypeStruct(np.shape(a), a.dtype) for n, a in arrays.items()}


def traced(
    function: Function,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    image_shape: tuple[int, ...],
    *,
    batch: int,
    train: bool,
) -> Program:
    """Traces a network: (params, state, images, key) -> logits, and in training the new state.

    Params and state are in the order of their sorted names.
    """

    def flat(params: Arrays, state: Arrays, images: jax.Array, key: jax.Array) -> list[Any]:
        logits, new = function(params, state, images, train, key)
        return [logits, *(new[name] for name in sorted(new))] if train else [logits]

    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: prng.key(0))
    return trace(flat, shapes_of(params), shapes_of(state), images, key)


def build(
    function: Function,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    classes: int | None = None,
) -> ChannelGraph:
    """Builds a network's channel graph from its jaxprs in inference and in training.

    Args:
        function: the network, see `Function`.
        params: its trained arrays, or their shapes and dtypes.
        state: its other arrays, or their shapes and dtypes.
        image_shape: (H, W, C) of one image.
        classes: number of logits that the network must have; None accepts any number.

    Raises:
        UserError: the network does not return logits (N, K), has not one logit for each class, or
            changes the shapes of its state.
    """
    names, others = sorted(params), sorted(state)
    shared = {n: tuple(Axis(s) for s in np.shape(params[n])) for n in names}
    shared |= {n: tuple(Axis(s) for s in np.shape(state[n])) for n in others}
    analyses, identity = [], ""
    for train in (False, True):
        program = traced(function, params, state, image_shape, batch=TRACED, train=train)
        if not train:
            found = _check_logits(program, classes)
        identity = fingerprint(program, identity)
        batch = Axis(TRACED)
        batch.group = BATCH
        analyses.append(_analysed(program, names, others, shared, batch, image_shape))
    inference, training = analyses
    for name, axes in zip(others, training.outputs[1:], strict=True):
        if len(axes) != len(shared[name]) or any(
            a.size != b.size for a, b in zip(axes, shared[name], strict=True)
        ):
            raise UserError(
                f"training gives {name} another shape: a network's state must keep its shapes"
            )
        for a, b in zip(axes, shared[name], strict=True):
            tie(a, b)
    for analysis in analyses:
        keep(analysis.outputs[0][1], "the logits")
    groups = _name_groups(inference.contractions, set(shared))
    _keep_unsolvable(shared, groups)
    final = _axes_of_logits(inference)
    layers = _layers(inference.contractions, final)
    more = traced(function, params, state, image_shape, batch=TRACED + 1, train=False)
    if is_whole(inference.batch):
        layers = _for_one_image(layers, more, shared, sorted(params), sorted(state), image_shape)
    reads: dict[str, tuple[int, ...]] = {}
    for contraction in inference.contractions + training.contractions:
        if contraction.origin is not None:
            along = [contraction.origin.axes[index] for index in contraction.reads]
            before = reads.get(contraction.origin.name, ())
            reads[contraction.origin.name] = tuple(
                sorted({*before, *(axis for axis in along if axis is not None)})
            )
    extents = {name: tuple(map(extent_of, axes)) for name, axes in shared.items()}
    reads = {
        name: tuple(index for index in along if extents[name][index].groups)
        for name, along in reads.items()
    }
    return ChannelGraph(
        groups={name: axis.size for name, axis in groups.items() if axis.whole is None},
        layers=layers,
        params={name: extents[name] for name in names},
        state={name: extents[name] for name in others},
        reads={name: along for name, along in reads.items() if along},
        whole=_whole(inference.contractions),
        image_shape=image_shape,
        classes=found,
        any_batch=not is_whole(inference.batch) and is_alike(inference.program, more),
        fingerprint=identity,
    )  # fmt: skip


def _analysed(
    program: Program,
    names: list[str],
    others: list[str],
    shared: Mapping[str, tuple[Axis, ...]],
    batch: Axis,
    image_shape: tuple[int, ...],
) -> Analysis:
    images = (batch, *(Axis(size, "the images") for size in image_shape))
    inputs = [shared[name] for name in [*names, *others]]
    count = len(inputs)
    return Analysis(
        program, dict(enumerate(names)), [*inputs, images, ()], images=[count, count + 1],
        batch=batch,
    )  # fmt: skip


def analysed(program: Program, graph: ChannelGraph) -> Analysis:
    """Analyses another trace of the same network, in terms of the graph's groups.

    Raises:
        UserError: a group of the graph cannot be pruned in this trace. The network's structure then
            depends on the number of images.
    """
    groups: dict[str, Axis] = {}
    shared = {
        name: tuple(axis_of(extent, groups) for extent in extents)
        for name, extents in graph.arrays.items()
    }
    batch = Axis(program.shape(program.inputs[-2])[0])
    batch.group = BATCH
    found = _analysed(
        program, sorted(graph.params), sorted(graph.state), shared, batch, graph.image_shape
    )
    if lost := [name for name, axis in groups.items() if is_whole(axis) and axis.size > 1]:
        raise UserError(
            f"with {batch.size} images the channels of {lost[0]} cannot be pruned "
            f"({reason(groups[lost[0]])}), with {TRACED} they can: the network's structure must "
            f"not depend on the number of images"
        )
    return found


def _check_logits(program: Program, classes: int | None) -> int:
    """Checks that a program returns logits; returns their number for one image."""
    if len(program.outputs) != 1:
        raise UserError(
            f"the network returns {len(program.outputs)} arrays: it must return its logits (N, K)"
        )
    shape = program.shape(program.outputs[0])
    if len(shape) != 2 or shape[0] != TRACED:
        raise UserError(
            f"the network returns shape {shape} for {TRACED} images: it must return logits (N, K), "
            f"here ({TRACED}, {classes or 'K'})"
        )
    dtype = program.dtype(program.outputs[0])
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"the network returns {dtype}: its logits must be floating-point numbers")
    if classes is not None and shape[1] != classes:
        raise UserError(
            f"the network has {shape[1]} logits, and the data has {classes} classes: it needs one "
            f"for each"
        )
    return shape[1]


def layer_name(array: str) -> str:
    """Returns a layer's name: its kernel's name, without a last part from `WEIGHTS`."""
    outer, _, last = array.rpartition("/")
    return outer if outer and last in WEIGHTS else array


def _name(contraction: Contraction) -> str:
    """Returns a layer's name: that of its kernel or of the parameter that it is computed from.

    A layer without parameters has the name of its module or kind. Source lines are not used, since
    they change.
    """
    parameter = contraction.origin.name if contraction.origin else contraction.source
    return layer_name(parameter) if parameter else contraction.module or contraction.kind


def _name_groups(contractions: list[Contraction], taken: set[str]) -> dict[str, Axis]:
    """Names the channel groups: channels that some layer writes and some layer reads.

    A group has the name of the first layer that writes it, changed if an array has that name. All
    other channels are kept whole.
    """
    read = {
        id(leaf)
        for contraction in contractions
        for index in contraction.reads
        for leaf in leaves(contraction.kernel[index])
    }
    groups: dict[str, Axis] = {}
    for contraction in contractions:
        written = [leaf for i in contraction.writes for leaf in leaves(contraction.kernel[i])]
        several = sum(leaf.whole is None for leaf in written) > 1
        for place, leaf in enumerate(written):
            if leaf.whole is not None or leaf.group is not None:
                continue
            if id(leaf) not in read:
                keep(leaf, "no layer reads it")
                continue
            name = _name(contraction) + (f"[{place}]" if several else "")
            if name in taken:  # the kernel is in no module
                name += "/out"
            while name in groups or name in taken:
                name += "'"
            leaf.group = name
            groups[name] = leaf
    return groups


def _keep_unsolvable(shared: Mapping[str, tuple[Axis, ...]], groups: dict[str, Axis]) -> None:
    """Keeps groups whole whose size does not follow from the shapes of the compact arrays."""
    while True:
        extents = [extent_of(axis) for axes in shared.values() for axis in axes]
        known = solve((extent, extent.size) for extent in extents)
        lost = [n for n, axis in groups.items() if axis.whole is None and n not in known]
        if not lost:
            return
        keep(groups[lost[0]], "no array has its size")


def _axes_of_logits(analysis: Analysis) -> set[int]:
    return {id(root(leaf)) for leaf in leaves(analysis.outputs[0][1])}


def _layers(contractions: list[Contraction], final: set[int]) -> tuple[Layer, ...]:
    layers, names = [], set()
    for contraction in contractions:
        name = _name(contraction)
        unique, number = name, 1
        while unique in names:
            number += 1
            unique = f"{name}#{number}"
        names.add(unique)
        uses, around = positions(contraction.around)
        origin = contraction.origin
        layers.append(
            Layer(
                name=unique,
                kind=contraction.kind,
                kernel=origin.name if origin else None,
                extents=tuple(_of_one_image(extent_of(axis)) for axis in contraction.kernel),
                reads=contraction.reads,
                writes=contraction.writes,
                uses=uses,
                around=tuple(_of_one_image(extent_of(axis)) for axis in around),
                final=any(
                    id(leaf) in final
                    for i in contraction.writes
                    for leaf in leaves(contraction.kernel[i])
                ),
                window=contraction.window,
            )
        )
    return tuple(layers)


def _of_one_image(extent: Extent) -> Extent:
    """Returns an extent with the batch axis reduced to one image."""
    if extent.group == BATCH:
        return Extent("fixed", 1)
    parts = tuple(map(_of_one_image, extent.parts))
    if not parts:
        return extent
    sizes = [part.size for part in parts]
    size = sum(sizes) if extent.kind == "concatenation" else math.prod(sizes)
    return dataclasses.replace(extent, size=size, parts=parts)


def _for_one_image(
    layers: tuple[Layer, ...],
    program: Program,
    shared: Mapping[str, tuple[Axis, ...]],
    names: list[str],
    others: list[str],
    image_shape: tuple[int, ...],
) -> tuple[Layer, ...]:
    """Returns layers whose uses are those of one image.

    This is needed if an operation without a rule hides the batch axis. Uses that grow with the
    number of images in a second trace are divided by it.
    """
    fresh = {name: tuple(Axis(axis.size) for axis in axes) for name, axes in shared.items()}
    batch = Axis(TRACED + 1)
    batch.group = BATCH
    more = _analysed(program, names, others, fresh, batch, image_shape)
    if len(more.contractions) != len(layers):
        return layers

    def of_one(layer: Layer, contraction: Contraction) -> Layer:
        sizes = [math.prod(axis.size for axis in contraction.around)]
        sizes += [layer.uses * math.prod(extent.size for extent in layer.around)]
        grows = sizes[0] * TRACED == sizes[1] * (TRACED + 1)
        # A kernel that is computed for each image has an axis of images.
        extents = tuple(
            Extent("fixed", 1) if (extent.size, axis.size) == (TRACED, TRACED + 1) else extent
            for extent, axis in zip(layer.extents, contraction.kernel, strict=True)
        )
        uses = layer.uses // TRACED if grows else layer.uses
        return dataclasses.replace(layer, uses=uses, extents=extents)

    return tuple(map(of_one, layers, more.contractions))


def _whole(contractions: list[Contraction]) -> tuple[Whole, ...]:
    found: dict[int, Whole] = {}
    for contraction in contractions:
        for index in contraction.writes:
            for leaf in leaves(contraction.kernel[index]):
                if leaf.whole is not None and leaf.size > 1 and id(leaf) not in found:
                    found[id(leaf)] = Whole(_name(contraction), leaf.size, leaf.whole)
    return tuple(found.values())
