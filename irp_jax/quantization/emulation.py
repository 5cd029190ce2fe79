"""A network that computes as its 8-bit file does, in JAX, with gradients."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax.data import FileSplit, Split
from irp_jax.errors import UserError
from irp_jax.graph import Analysis, Apply, Equation
from irp_jax.quantization import fake, sites

SCHEMES = ("int8",)
"""Names of quantization schemes."""

IMAGES = 512
"""Usual number of calibration images."""

BATCH = 64
"""Calibration images that are evaluated at once."""


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The ranges of a network's activations. Hashable.

    Attributes:
        ranges: (name of a site, low, high) of each activation that is rounded.
    """

    ranges: tuple[tuple[str, float, float], ...]

    @classmethod
    def of(cls, record: Any) -> "Quantization":
        """Reads what `record` returned.

        Raises:
            UserError: it is of another version of this package, or damaged.
        """
        if not isinstance(record, Mapping) or record.get("scheme") not in SCHEMES:
            scheme = record.get("scheme") if isinstance(record, Mapping) else record
            raise UserError(
                f"quantization {scheme!r} is not known to this version of irp_jax: use the version "
                f"that made the network"
            )
        try:
            found = tuple(
                (str(name), float(low), float(high))
                for name, (low, high) in record["ranges"].items()
            )
            sound = all(-np.inf < low <= high < np.inf for _, low, high in found)
        except (KeyError, AttributeError, TypeError, ValueError):
            sound = False
        if not sound:
            raise UserError(
                "the ranges of activations of the 8-bit network are damaged: fetch or export it "
                "again"
            )
        return cls(found)

    def record(self) -> dict[str, Any]:
        """Returns the ranges as JSON: {"scheme", "ranges": site -> [low, high]}."""
        return {"scheme": "int8", "ranges": {name: [low, high] for name, low, high in self.ranges}}


class Rounding(NamedTuple):
    """How arrays are rounded.

    Attributes:
        activations: (values, low, high) -> values on the levels of this range.
        weights: (kernel, axes of output channels) -> kernel on its levels.
    """

    activations: Callable[[Any, float, float], Any]
    weights: Callable[[Any, tuple[int, ...]], Any]


FAKE = Rounding(fake.activations, fake.weights)


@functools.lru_cache(maxsize=32)
def emulated(network: Apply, quantization: Quantization | None, rounding: Rounding = FAKE) -> Apply:
    """Returns the network with rounded weights and activations.

    Args:
        network: (params, state, images, train, key) -> (logits, state), from `graph.network`.
        quantization: of this network; None returns the network unchanged.
        rounding: rounds its arrays.

    Returns:
        A function with the same arguments. Its gradients pass through the rounding. Equal arguments
        return the same object, so that it is compiled once.
    """
    if quantization is None:
        return network
    ranges = {name: (low, high) for name, low, high in quantization.ranges}

    def rounded(analysis: Analysis) -> Callable[[Equation, list[Any]], list[Any]]:
        found = sites.find(analysis)

        def operands(equation: Equation, inputs: list[Any]) -> list[Any]:
            inputs = list(inputs)
            for site in found.get(equation, ()):
                value = inputs[site.position]
                if not site.name:
                    inputs[site.position] = rounding.weights(value, site.channels)
                elif site.name in ranges:
                    inputs[site.position] = rounding.activations(value, *ranges[site.name])
                else:
                    raise UserError(
                        f"the network has no range for the input of {site.name}: it was quantized "
                        f"with other code of the model"
                    )
            return inputs

        return operands

    return functools.partial(network, operands=rounded)


def check_trainable(network: Apply, variables: Any, images: Any) -> None:
    """Checks that a network can be trained in 8 bits. Nothing is computed.

    In training and in inference the same activations must be rounded, because their ranges are
    measured in inference.

    Args:
        network: see `emulated`.
        variables: {"params", "batch_stats"}, arrays or their shapes and dtypes.
        images: a batch (N, H, W, C) float32, or its shape and dtype.

    Raises:
        UserError: the network has no layer to quantize, or training rounds other activations.
    """

    def names(train: bool) -> set[str]:
        found: set[str] = set()

        def looking(analysis: Analysis) -> Callable[[Equation, list[Any]], list[Any]]:
            for several in sites.find(analysis).values():
                found.update(site.name for site in several if site.name)
            return lambda equation, inputs: inputs

        jax.eval_shape(
            lambda variables, images: network(
                variables["params"], variables["batch_stats"], images, train=train, operands=looking
            )[0],
            variables,
            images,
        )
        return found

    used, trained = names(train=False), names(train=True)
    if not used:
        raise UserError("the network has no layer to quantize")
    if used != trained:
        raise UserError(
            f"the network cannot be trained in 8 bits, because it computes other layers in "
            f"training than in inference ({min(used ^ trained)}): quantize it after training"
        )


def calibration_images(split: Split | FileSplit, count: int = IMAGES) -> np.ndarray:
    """Returns up to `count` images of a training split, evenly spaced, (N, H, W, C) uint8.

    Args:
        split: the training images.
        count: at least 1.
    """
    indices = np.linspace(0, len(split) - 1, min(count, len(split))).astype(int)
    return split.take(indices).loaded().images


def calibrate(
    network: Apply, variables: Mapping[str, Any], images: np.ndarray | jax.Array
) -> Quantization:
    """Measures the ranges of activations: their smallest and largest values.

    Args:
        network: see `emulated`.
        variables: {"params", "batch_stats"}, each name -> array.
        images: (N, H, W, C) uint8, or float in [0, 1]; at least one, such as
            `calibration_images` of the training set.

    Raises:
        UserError: the network has no layer to quantize, or an activation is not finite.
    """

    @jax.jit
    def extremes(variables: Any, images: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        seen: dict[str, tuple[jax.Array, jax.Array]] = {}

        def looking(analysis: Analysis) -> Callable[[Equation, list[Any]], list[Any]]:
            found = sites.find(analysis)

            def operands(equation: Equation, inputs: list[Any]) -> list[Any]:
                for site in found.get(equation, ()):
                    if site.name and site.name not in seen:
                        value = inputs[site.position]
                        seen[site.name] = (jnp.min(value), jnp.max(value))
                return inputs

            return operands

        network(
            variables["params"], variables["batch_stats"], images, train=False, operands=looking
        )
        return seen

    total: dict[str, tuple[float, float]] = {}
    batch = min(BATCH, len(images))
    for start in range(0, len(images), batch):
        part = images[min(start, len(images) - batch) :][:batch]  # one shape for all
        part = np.asarray(part, np.float32) / (255 if images.dtype == np.uint8 else 1)
        for name, (low, high) in jax.device_get(extremes(variables, part)).items():
            before = total.get(name, (np.inf, -np.inf))
            total[name] = (min(before[0], float(low)), max(before[1], float(high)))
    if not total:
        raise UserError("the network has no layer to quantize")
    for name, pair in total.items():
        if not np.isfinite(pair).all():
            raise UserError(f"the input of {name} is not finite: the network cannot be quantized")
    return Quantization(tuple((name, *total[name]) for name in sorted(total)))
