"""The trained network: prediction, evaluation under attack, quantization, saving."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import attacks, evaluation, layout, traced
from irp_jax.data import Dataset, to_float
from irp_jax.data import load as load_data
from irp_jax.data.dataset import in_unit_range
from irp_jax.errors import UserError
from irp_jax.graph import ChannelGraph
from irp_jax.inference import inference
from irp_jax.quantization import Quantization, calibrate
from irp_jax.record import described, model_of, quantization_of, stored_name
from irp_jax.saving import packed


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network:
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
            _check_range(images)
        images = jnp.asarray(images)
        self._check_images(images)
        images = to_float(images) if images.dtype == jnp.uint8 else images.astype(jnp.float32)
        return self._compiled(self._on_device, images)

    def _check_images(self, images: Any) -> None:
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

    def evaluate(
        self,
        data: Dataset | tuple[Any, Any] | str,
        attack: attacks.AttackName = "pgd",
        *,
        epsilon: float | None = None,
        batch_size: int = 256,
        **settings: Any,
    ) -> attacks.AttackReport:
        """Measures natural accuracy and accuracy under attack.

        Args:
            data: a data set or its name, of which the test images are attacked; or (images,
                labels): images (N, H, W, C), uint8 or float in [0, 1], and labels (N,).
            attack: pgd, autoattack and others: see `attacks.AttackSpec`.
            epsilon: radius for pixels in [0, 1]; the radius of training if None.
            batch_size: images attacked at once.
            **settings: fields of `attacks.AttackSpec`: norm, steps, restarts, seed, ...

        Returns:
            A report with the fractions `natural` and `robust` of the images, the `accuracy` after
            each attack, and the `adversarial` images.

        Raises:
            UserError: the images have another shape or other classes, or a setting is unknown; also
                the errors of `attacks.evaluate`.
        """
        images, labels = self._to_measure(data)
        spec = self._attack(attack, self.epsilon if epsilon is None else epsilon, settings)
        return evaluation.evaluate(
            self.apply, self.variables, images, labels, spec, batch_size=batch_size
        )

    def evaluate_curve(
        self,
        data: Dataset | tuple[Any, Any] | str,
        epsilons: Iterable[float],
        attack: attacks.AttackName = "pgd",
        *,
        batch_size: int = 256,
        **settings: Any,
    ) -> dict[float, attacks.AttackReport]:
        """Measures robustness at several radii.

        Args:
            data, attack, batch_size, **settings: as for `evaluate`.
            epsilons: positive radii for pixels in [0, 1].

        Returns:
            Radius -> report as of `evaluate`, in ascending order.

        Raises:
            UserError: as for `evaluate`.
        """
        images, labels = self._to_measure(data)
        specs = [self._attack(attack, epsilon, settings) for epsilon in sorted(set(epsilons))]
        reports = evaluation.curve(
            self.apply, self.variables, images, labels, specs, batch_size=batch_size
        )
        return {spec.epsilon: report for spec, report in zip(specs, reports, strict=True)}

    def evaluate_corruptions(
        self, data: Dataset | tuple[Any, Any] | str, *, seed: int = 0, batch_size: int = 256
    ) -> dict[str, list[float]]:
        """Measures accuracy under the 15 common corruptions.

        Args:
            data: as for `evaluate`, with images in uint8.
            seed: seed of all random numbers.
            batch_size: images evaluated at once.

        Returns:
            Name of corruption -> accuracy at severities 1 to 5.

        Raises:
            UserError: as for `evaluate`, or the images are too small.
        """
        images, labels = self._to_measure(data)
        return evaluation.corrupted(
            self.apply, self.variables, images, labels, seed=seed, batch_size=batch_size
        )

    def _to_measure(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of a data set, its name, or a pair (images, labels)."""
        if isinstance(data, str):
            data = load_data(data, image_size=self.image_shape[0])
        if isinstance(data, Dataset):
            self.check_classes(data)
            images, labels = data.test.images, data.test.labels
        elif isinstance(data, tuple) and len(data) == 2:
            images, labels = (np.asarray(part) for part in data)
        else:
            raise UserError(f"give a data set, or (images, labels), not {type(data).__name__}")
        self._check_images(images)
        return images, labels

    def _attack(self, name: Any, epsilon: float, settings: dict[str, Any]) -> attacks.AttackSpec:
        try:
            return attacks.AttackSpec(name=name, epsilon=epsilon, **settings)
        except TypeError as error:
            raise UserError(f"unknown setting of an attack: {error}") from error

    def save(self, folder: str | Path, *, function: bool | None = None) -> None:
        """Writes the network to a folder: see docs/saved_networks.md.

        Args:
            folder: the folder to make; one that holds a saved network is replaced.
            function: whether to write the function too, as StableHLO, so that the network can be
                loaded without the code of its model. If None, it is written unless the model is
                one of this package or the function cannot be exported.

        Raises:
            UserError: the folder cannot be written, holds something else, or the function was
                requested and cannot be exported.
        """
        layout.write(Path(folder), packed(self, function=function))

    def export(
        self,
        path: str | Path,
        format: str = "onnx",
        *,
        layout: str = "NHWC",
        multiple: int | None = None,
        model: Any = None,
    ) -> None:
        """Writes the network to one file for other runtimes: see docs/deploy.md.

        The file is checked on two images before it is written. Nothing is written if a logit
        differs by more than 0.1 % of the largest one, or 10 % for an 8-bit network.

        Args:
            path: the file to write. An existing file is replaced. The metadata of a StableHLO file
                are written to `path` + ".json".
            format: "onnx", "tflite" for LiteRT, or "stablehlo".
            layout: axis order of the images in an ONNX file, "NHWC" or "NCHW".
            multiple: channels of an ONNX file are padded with zeros to multiples of this, for speed
                in onnxruntime; 1 adds none. None for the multiple of the run, which is 4 unless its
                table of latencies has another.
            model: as for `load`. A network whose model is not of this package is padded only if its
                model is given.

        Raises:
            UserError: the format or layout is unknown, the extra `onnx` or `litert` is not
                installed, the LiteRT converter cannot be installed, the file cannot be written, an
                operation of the network has no counterpart in the format, or the model of an 8-bit
                network from outside this package is not given for a LiteRT file.
        """
        from irp_jax.export.file import write

        write(self, path, format, layout=layout, multiple=multiple, model=model)

    def quantize(self, images: Any, *, model: Any = None) -> "Network":
        """Returns this network in 8-bit integers (post-training quantization).

        It is emulated in float32 with straight-through gradients, so that it can be evaluated and
        attacked like any network. `export` writes it as an 8-bit ONNX or LiteRT file.

        Args:
            images: (N, H, W, C) uint8, or float in [0, 1], that show which values activations
                take: about 512 training images.
            model: as for `load`.

        Raises:
            UserError: the images have another shape, the model of a network that is not of this
                package is missing or another, or it has no layer to quantize.
        """
        images = np.asarray(images)
        self._check_images(images)
        _check_range(images)
        known = self.traced_model(model, "quantize it")
        found = calibrate(known.network, self.variables, images)
        return dataclasses.replace(
            self, apply=inference(known.network, found), results=None, history=[],
            record={**self.record, "quantization": found.record()},
        )  # fmt: skip

    def with_quantization(
        self, quantization: Quantization | None, *, model: Any = None
    ) -> "Network":
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

    def dense(self, model: Any = None) -> "Network | None":
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
        return Network(apply=inference(known.network), variables=variables, record=record)

    def __repr__(self) -> str:
        cost = self.cost
        return (
            f"Network({self.name}, {len(self.class_names)} classes, images {self.image_shape}, "
            f"{cost['macs'] / 1e6:.2f}M MACs ({cost['macs_ratio']:.1%}), {cost['params']:,} "
            f"parameters ({cost['params_ratio']:.1%}))"
        )

    def _repr_html_(self) -> str:
        """Returns small tables for notebooks: cost, accuracy if known, and what was kept."""
        from irp_jax.report.notebook import network_tables

        return network_tables(self)


def _check_range(images: np.ndarray) -> None:
    """Checks that images in float are in [0, 1]: values up to 255 are a common mistake.

    Raises:
        UserError: a value is outside, or not finite.
    """
    if images.dtype.kind == "f" and images.size and in_unit_range(images) is None:
        raise UserError(
            f"images in float must be in [0, 1], these range from {images.min():.6g} to "
            f"{images.max():.6g}: divide by 255, or give them as uint8"
        )
