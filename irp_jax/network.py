"""What is done with a trained network: evaluation under attack, quantization, saving, export."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from irp_jax import attacks, evaluation
from irp_jax.errors import UserError
from irp_jax.export.file import write as write_file
from irp_jax.inference import layout
from irp_jax.inference.function import inference
from irp_jax.inference.images import Images, images_of
from irp_jax.inference.network import TrainedNetwork, check_range
from irp_jax.inference.notebook import network_tables
from irp_jax.quantization import calibrate
from irp_jax.saving import packed


class Network(TrainedNetwork):
    """A trained network from which pruned channels were removed.

    Its fields, and what can be read off them, are those of `inference.network.TrainedNetwork`.
    """

    def evaluate(
        self,
        data: Images = None,
        attack: attacks.AttackName = "pgd",
        *,
        epsilon: float | None = None,
        batch_size: int = 256,
        **settings: Any,
    ) -> attacks.AttackReport:
        """Measures natural accuracy and accuracy under attack.

        Args:
            data: a data set or its name, of which the test images are attacked; or (images,
                labels): images (N, H, W, C), uint8 or float in [0, 1], and labels (N,); or None for
                the data set that the network was trained on.
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
        images, labels = images_of(self, data)
        spec = self._attack(attack, self.epsilon if epsilon is None else epsilon, settings)
        return evaluation.evaluate(
            self.apply, self.variables, images, labels, spec, batch_size=batch_size
        )

    def evaluate_curve(
        self,
        data: Images,
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
        images, labels = images_of(self, data)
        specs = [self._attack(attack, epsilon, settings) for epsilon in sorted(set(epsilons))]
        reports = evaluation.curve(
            self.apply, self.variables, images, labels, specs, batch_size=batch_size
        )
        return {spec.epsilon: report for spec, report in zip(specs, reports, strict=True)}

    def evaluate_corruptions(
        self, data: Images = None, *, seed: int = 0, batch_size: int = 256
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
        images, labels = images_of(self, data)
        return evaluation.corrupted(
            self.apply, self.variables, images, labels, seed=seed, batch_size=batch_size
        )

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
        write_file(self, path, format, layout=layout, multiple=multiple, model=model)

    def quantize(self, images: Any, *, model: Any = None) -> Self:
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
        self.check_images(images)
        check_range(images)
        known = self.traced_model(model, "quantize it")
        found = calibrate(known.network, self.variables, images)
        return dataclasses.replace(
            self, apply=inference(known.network, found), results=None, history=[],
            record={**self.record, "quantization": found.record()},
        )  # fmt: skip

    def _repr_html_(self) -> str:
        """Returns small tables for notebooks: cost, accuracy if known, and what was kept."""
        return network_tables(self)
