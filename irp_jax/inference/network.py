"""A trained network: its function, arrays and record, and what can be read off them.

`irp_jax.Network` adds what is done with a network: evaluation, quantization, saving, export.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import traced
from irp_jax.data import Dataset, to_float
from irp_jax.data.dataset import in_unit_range
from irp_jax.errors import UserError
from irp_jax.graph import ChannelGraph
from irp_jax.inference import layout
from irp_jax.inference.function import inference
from irp_jax.inference.record import described, model_of, quantization_of, stored_name
from irp_jax.quantization import Quantization


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainedNetwork:
    """A trained network from which pruned channels were removed.

    Attributes:
        apply: (variables, images (N, H, W, C) float32 in [0, 1]) -> logits (N, K), inference mode.
        variables: {"params", "batch_stats"}, each name -> array. Pruned channels are removed;
            pruned weights are zero.
        record: the content of `config.json`: model, classes, cost, keep counts and training.
        history: a row of accuracies and cost for each epoch of training; empty if not known.
        results: the content of results.json of the run; None if not known.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    variables: dict[str, dict[str, Any]]
    record: dict[str, Any]
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    results: dict[str, Any] | None = None

    def __call__(self, images: Any) -> jax.Array:
        """Returns logits (N, K), float32 unless the network computes in float64.

        Args:
            images: (N, H, W, C) uint8, or float in [0, 1]; at least one.

        Raises:
            UserError: images of another shape or dtype, or NumPy's with values above 1 in float.
        """
        if isinstance(images, np.ndarray):  # an array on a device is not fetched for this
            check_range(images)
        images = jnp.asarray(images)
        self.check_images(images)
        images = to_float(images) if images.dtype == jnp.uint8 else images.astype(jnp.float32)
        return self._compiled(self._on_device, images)

    def check_images(self, images: Any) -> None:
        """Checks that the network takes these images.

        Raises:
            UserError: they have another shape or dtype than `__call__` takes.
        """
        if images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            raise UserError(
                f"images must be (N, {', '.join(map(str, self.image_shape))}), got shape "
                f"{images.shape}"
            )
        if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"images must be uint8, or float in [0, 1], got {images.dtype}")

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    @functools.cached_property
    def _compiled(self) -> Callable[[Any, jax.Array], jax.Array]:
        return jax.jit(self.apply)

    @property
    def name(self) -> str:
        """The name of the model."""
        spec = self.record["model"]
        return spec.get("name") or spec.get("file") or spec["class"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, one for each logit."""
        return tuple(self.record["class_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of an image."""
        height, width, channels = self.record["image_shape"]
        return height, width, channels

    @property
    def epsilon(self) -> float:
        """The L-inf radius of adversarial training, for pixels in [0, 1]."""
        return self.record["trained"]["epsilon"]

    @property
    def epoch(self) -> int:
        """The number of epochs of training."""
        return self.record["epochs"]

    @property
    def cost(self) -> dict[str, Any]:
        """MACs per image and parameters, of this and of the dense network, and their ratios."""
        return self.record["cost"]

    @property
    def keep_counts(self) -> dict[str, int]:
        """Keep counts: channel group -> channels kept, or kernel -> weights kept."""
        return self.record["keep_counts"]

    @property
    def quantization(self) -> Quantization | None:
        """The ranges of the activations of an 8-bit network; None for a network in float32."""
        return quantization_of(self.record)

    def check_classes(self, data: Dataset) -> None:
        """Checks that the labels of a data set mean the same classes as the network's logits.

        Raises:
            UserError: the classes have other names or another order.
        """
        both = (data.class_names, self.class_names)
        unnamed = tuple(map(str, range(len(self.class_names))))
        permuted = both[0] != both[1] and sorted(both[0]) == sorted(both[1])
        alike = len(both[0]) == len(both[1]) and not permuted
        if both[0] == both[1] or (alike and unnamed in both):
            return  # classes without names match by position
        there = f"the {len(data.class_names)} classes of {data.name}"
        here = f"the {len(self.class_names)} of the network"
        pairs = enumerate(zip(data.class_names, self.class_names, strict=False))
        for label, (theirs, ours) in pairs:
            if theirs != ours:
                there, here = (
                    f"class {label} of {data.name} is {theirs!r}",
                    f"the network's {ours!r}",
                )
                break
        raise UserError(
            f"{there}, {here}: give labels that mean the classes of training, in their order, and "
            f"name them in class_names"
        )

    def with_quantization(self, quantization: Quantization | None, *, model: Any = None) -> Self:
        """Returns this network with given ranges of activations, or in float32 for None.

        Raises:
            UserError: the model of a network that is not of this package is missing or another.
        """
        if quantization == self.quantization:
            return self
        known = self.traced_model(model, "round it")
        record = {key: value for key, value in self.record.items() if key != "quantization"}
        if quantization is not None:
            record["quantization"] = quantization.record()
        return dataclasses.replace(
            self, apply=inference(known.network, quantization), record=record, results=None
        )

    def _known(self, model: Any) -> traced.TracedModel | None:
        """Returns the traced model; None if it is not of this package and not given."""
        if model is None and not layout.is_ours(self.record["model"]):
            return None
        return model_of(self.record, model)

    def traced_model(self, model: Any, purpose: str) -> traced.TracedModel:
        """Returns the traced model of this network.

        Args:
            model: as for `load`.
            purpose: what it is needed for, for the message.

        Raises:
            UserError: the model of a network that is not of this package is missing or another.
        """
        known = self._known(model)
        if known is None:
            raise UserError(
                f"the network is from outside this package: give its model, "
                f"{stored_name(self.record)}, to {purpose}"
            )
        return known

    def graph(self, model: Any = None) -> ChannelGraph | None:
        """Returns the channel graph of the dense network.

        Returns None if the model is not of this package and not given.

        Args:
            model: as for `load`.

        Raises:
            UserError: the network was made with another model.
        """
        known = self._known(model)
        return None if known is None else known.graph

    def dense(self, model: Any = None) -> Self | None:
        """Returns a dense network of this model with random weights, to compare size and speed.

        Returns None if the model is not of this package and not given.

        Args:
            model: as for `load`.

        Raises:
            UserError: the network was made with another model.
        """
        known = self._known(model)
        if known is None:
            return None
        random = np.random.default_rng(0)

        def drawn(leaf: Any) -> np.ndarray:
            """Draws an array at a scale that keeps activations of similar size in all layers."""
            if len(leaf.shape) < 2:
                return np.ones(leaf.shape, leaf.dtype)
            scale = np.prod(leaf.shape[:-1]) ** -0.5
            return (scale * random.normal(size=leaf.shape)).astype(leaf.dtype)

        shapes = jax.eval_shape(known.init, jax.random.key(0))
        params, state = jax.tree.map(drawn, shapes)
        record = described(self.record, known.graph, dict(known.graph.groups), 0)
        record.pop("quantization", None)
        variables = {"params": params, "batch_stats": state}
        return type(self)(apply=inference(known.network), variables=variables, record=record)

    def __repr__(self) -> str:
        cost = self.cost
        return (
            f"Network({self.name}, {len(self.class_names)} classes, images {self.image_shape}, "
            f"{cost['macs'] / 1e6:.2f}M MACs ({cost['macs_ratio']:.1%}), {cost['params']:,} "
            f"parameters ({cost['params_ratio']:.1%}))"
        )


def check_range(images: np.ndarray) -> None:
    """Checks that images in float are in [0, 1]: values up to 255 are a common mistake.

    Raises:
        UserError: a value is outside, or not finite.
    """
    if images.dtype.kind == "f" and images.size and in_unit_range(images) is None:
        raise UserError(
            f"images in float must be in [0, 1], these range from {images.min():.6g} to "
            f"{images.max():.6g}: divide by 255, or give them as uint8"
        )
