"""What a run would do: its plan, the cost of its compact network, and the memory it needs.

Nothing is trained, downloaded or written.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax import config as configs
from irp_jax import data, latency, parallel, prng, traced
from irp_jax.config import Config
from irp_jax.data.official import OFFICIAL
from irp_jax.pruning import cost, uniform
from irp_jax.training import image_source
from irp_jax.training.methods import METHODS, Width
from irp_jax.training.plan import Plan, make_plan
from irp_jax.training.state import initial_state

SHAPES = {
    "cifar10": ((32, 32, 3), 10), "cifar100": ((32, 32, 3), 100), "svhn_cropped": ((32, 32, 3), 10),
    "mnist": ((28, 28, 1), 10), "fashion_mnist": ((28, 28, 1), 10),
}  # fmt: skip
"""Data set that would have to be downloaded -> shape of an image, and number of classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """What a run would do.

    Attributes:
        settings: all settings of the run.
        workdir: its folder.
        plan: its epochs, stages and budget.
        layers: a row for each layer of the compact target, as returned by `cost.table`.
        is_chosen: whether the run will have these channels. Otherwise they are those of uniform
            pruning to the same budget, and the method will choose others at the same cost.
        cost: of the compact target, as in results.json.
        memory: what is on each device -> bytes.
    """

    settings: dict[str, Any]
    workdir: str
    plan: Plan
    layers: list[dict[str, Any]]
    is_chosen: bool
    cost: dict[str, Any]
    memory: dict[str, int]


def preview(config: Config) -> Preview:
    """Returns what a run would do.

    Raises:
        UserError: the run cannot be done with these settings.
    """
    configs.check(config)
    shape, classes, count = images_of(config)
    model = traced.named(config.model, config.width, shape, classes, config.seed, config.activation)
    if config.cost == "latency":
        model, _ = latency.attached(model, config.latency_table, config.latency_device)
    method = METHODS[config.method]
    streamed = data.is_folder(config.dataset)
    longest = image_source.longest_segment(config, shape, streamed)
    plan = make_plan(config, method, model.graph, count, longest)
    if config.quantize:
        traced.check_quantized(model, config.batch_size)
    if isinstance(method, Width):
        kept = method.keep_counts(config, model.graph, plan.limit)
    else:
        kept = uniform.keep_counts(model.graph, config.granularity, config.cost, plan.limit)
    devices = parallel.usable_devices(config.batch_size)
    # Of images in files, the segment under way and the next are on the devices.
    held = 2 * longest * config.batch_size // devices if streamed else count
    return Preview(
        settings=configs.settings(config),
        workdir=str(configs.workdir(config)),
        plan=plan,
        layers=cost.table(model.graph, kept),
        is_chosen=isinstance(method, Width),
        cost=cost.report(model.graph, kept),
        memory={
            "training images": min(held, count) * math.prod(shape),
            **_memory(config, plan, model, (config.batch_size // devices, *shape)),
        },
    )


def images_of(config: Config) -> tuple[tuple[int, int, int], int, int]:
    """Returns the shape of an image, the number of classes and that of training images."""
    if config.dataset in SHAPES:
        shape, classes = SHAPES[config.dataset]
        count = OFFICIAL[config.dataset].sizes["train"]
        count -= data.validation_size(config.validation, count)
    elif data.is_folder(config.dataset):
        size = config.image_size or data.IMAGE_SIZE
        train, *_, names = data.open_folder(config.dataset, size, config.validation)
        shape, classes, count = train.image_shape, len(names), len(train)
    else:
        found = data.load(config.dataset, validation_fraction=config.validation)
        shape, classes, count = found.image_shape, found.num_classes, len(found.train)
    return shape, classes, min(count, config.train_images) if config.train_images else count


def _memory(
    config: Config, plan: Plan, model: traced.TracedModel, images: tuple[int, ...]
) -> dict[str, int]:
    """Returns the bytes of the state, and of what a backward pass needs of a forward pass.

    Both are of the dense network, with which a run begins. Shapes are traced, nothing is computed.
    """
    params, stats = jax.eval_shape(model.init, prng.key(0))
    state = jax.eval_shape(
        lambda p, s: initial_state(config, plan, model.graph, {"params": p, "batch_stats": s}),
        params, stats,
    )  # fmt: skip

    def kept(params: Any, stats: Any, images: jax.Array) -> Any:
        def logits(params: Any, images: jax.Array) -> jax.Array:
            return model.network(params, stats, images, train=True, key=prng.key(0))[0]

        return jax.vjp(logits, params, images)[1]  # its leaves are the stored arrays

    batch = jax.ShapeDtypeStruct(images, jnp.float32)
    # Gradients are as large as the weights.
    return {
        "weights, optimizer and gradients": _bytes(state) + _bytes(params),
        f"activations of {images[0]} images": _bytes(jax.eval_shape(kept, params, stats, batch)),
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
