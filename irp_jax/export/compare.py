"""A file beside the network that it was exported from, on the same images."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from irp_jax import attacks, checkpoint, parallel
from irp_jax.attacks.inputs import check_set
from irp_jax.attacks.trials import trial_keys
from irp_jax.data import Dataset
from irp_jax.data import load as load_data
from irp_jax.errors import UserError
from irp_jax.export import artifact as artifacts
from irp_jax.export.artifact import Artifact
from irp_jax.export.file import serialized
from irp_jax.export.latency import measured
from irp_jax.quantization import Quantization

if TYPE_CHECKING:
    from irp_jax.network import Network

BATCH = 256
"""Images given to file and network at once."""


def verify(
    artifact: str | Path,
    network: "Network",
    data: Dataset | tuple[Any, Any] | str | None = None,
    *,
    model: Any = None,
    epsilon: float | None = None,
    steps: int = 10,
    queries: int = 200,
    rounds: int = 50,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares an exported file with its network: accuracy, attacks, size and latency.

    PGD attacks the network by its gradients, and the file is shown what it found. Square attacks
    the file itself in its own runtime, without gradients. For an 8-bit file PGD also attacks its
    emulation in JAX, which has gradients.

    Args:
        artifact: the file.
        network: what it was exported from.
        data: a data set or its name, of which the test images are taken; or images (N, H, W, C),
            uint8 or float in [0, 1], and labels (N,). The set of training if None.
        model: of a network that is none of ours, for the dense network that it is timed beside.
        epsilon: radius of both attacks, L-inf; that of training if None.
        steps: of PGD, one random start, step length epsilon / 4.
        queries: of Square; 0 leaves it out.
        rounds: times that each file is run for its latency; 0 leaves it out.
        threads: that onnxruntime computes with.
        seed: of every draw.

    Returns:
        `artifact`, what is known of the file; `natural` and `pgd`, accuracies of `network` and
        `file`; `square`, accuracy of the file; `agreement`, the share of images of one prediction;
        `max_difference` of logits; `latency`, see `latency.measured`. For an 8-bit file also
        `emulation`: the same figures of the emulation and the file, PGD by its gradients.

    Raises:
        UserError: the file cannot be read, is of another network, or the images are not its.
    """
    for name, value in (("queries", queries), ("rounds", rounds), ("threads", threads)):
        if value < (name == "threads"):
            raise UserError(f"{name} must be at least {int(name == 'threads')}, got {value}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    file = artifacts.load(artifact, threads=threads)
    check_network(file, network, artifact)
    images, labels = _images(network, data)
    threat = attacks.linf(network.epsilon if epsilon is None else epsilon)
    apply = Partial(network.apply, jax.device_put(network.variables))
    here = attacks.predict(apply, images, batch_size=min(BATCH, len(images)))
    there = predict(file, images)
    found = _pgd(apply, images, labels, threat, steps, seed)
    rounded = file_network(file, network, model)
    report: dict[str, Any] = {
        "artifact": {
            "format": file.format, "bytes": file.size, "nodes": file.nodes,
            "sha256": file.sha256, "metadata": dict(file.facts),
        },
        "images": len(images),
        "epsilon": float(threat.epsilon),
        "natural": {"network": _accuracy(here, labels), "file": _accuracy(there, labels)},
        "agreement": float((here.argmax(-1) == there.argmax(-1)).mean()),
        "max_difference": float(np.abs(here - there).max()),
        "pgd": {
            "steps": steps,
            "network": _accuracy(
                attacks.predict(apply, found, batch_size=min(BATCH, len(images))), labels
            ),
            "file": _accuracy(predict(file, found), labels),
        },
    }  # fmt: skip
    if rounded is not None:
        report["emulation"] = _emulation(rounded, file, images, labels, there, threat, steps, seed)
    if queries:
        report["square"] = {
            "queries": queries, "file": square(file, images, labels, threat, queries, seed)
        }  # fmt: skip
    if rounds:
        compared = {"compact": file}
        if rounded is not None:
            content = serialized(network.quantized(None, model=model), file.format,
                                 layout=file.layout)  # fmt: skip
            compared["float32"] = artifacts.of(content, file.format, file.facts, threads=threads)
            report["artifact"]["float32_bytes"] = len(content)
        dense = network.dense(model)
        if dense is not None:
            content = serialized(dense, file.format, layout=file.layout)
            compared["dense"] = artifacts.of(content, file.format, file.facts, threads=threads)
            report["artifact"]["dense_bytes"] = len(content)
        report["latency"] = measured(compared, images[:64], rounds=rounds)
        # JAX computes with what it finds.
        report["threads"] = threads if file.format == "onnx" else parallel.cores()
    return report


def file_network(file: Artifact, network: "Network", model: Any = None) -> "Network | None":
    """Returns the network that computes in JAX as an 8-bit file does; None for other files."""
    stored = file.facts.get("quantization")
    if stored is None:
        return None
    return network.quantized(Quantization.of(json.loads(stored)), model=model)


def _emulation(
    rounded: "Network",
    file: Artifact,
    images: np.ndarray,
    labels: np.ndarray,
    there: np.ndarray,
    threat: attacks.Threat,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Compares an 8-bit file with its emulation. `there` are the file's logits."""
    apply = Partial(rounded.apply, jax.device_put(rounded.variables))
    batch_size = min(BATCH, len(images))
    here = attacks.predict(apply, images, batch_size=batch_size)
    found = _pgd(apply, images, labels, threat, steps, seed)
    return {
        "natural": _accuracy(here, labels),
        "agreement": float((here.argmax(-1) == there.argmax(-1)).mean()),
        "max_difference": float(np.abs(here - there).max()),
        "pgd": {
            "steps": steps,
            "emulation": _accuracy(attacks.predict(apply, found, batch_size=batch_size), labels),
            "file": _accuracy(predict(file, found), labels),
        },
    }


def check_network(file: Artifact, network: "Network", path: str | Path) -> None:
    """Refuses a file of another network.

    Raises:
        UserError: says what tells them apart.
    """
    facts = file.facts
    shape = artifacts.image_shape(facts)
    if shape is not None and tuple(shape) != network.image_shape:
        raise UserError(
            f"{path} takes images {tuple(shape)}, the network {network.image_shape}: give the "
            f"network that it was exported from"
        )
    if facts.get("network_sha256") != checkpoint.digest(network.variables):
        raise UserError(
            f"{path} is of another network, or of another training of it: give the network that "
            f"it was exported from, or export this one anew"
        )


def predict(file: Artifact, images: np.ndarray) -> np.ndarray:
    """The file's logits (N, K) of images (N, H, W, C)."""
    parts = [file(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    return np.concatenate(parts).astype(np.float32)


def square(
    file: Artifact,
    images: np.ndarray,
    labels: np.ndarray,
    threat: attacks.Threat,
    queries: int,
    seed: int,
) -> float:
    """The file's accuracy under Square, which asks for nothing but logits.

    Each step is run in two halves, and the file in between: its runtime is no part of a program of
    JAX.

    Args:
        file: what is attacked.
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) int32.
        threat: the ball.
        queries: steps of the attack.
        seed: of its draws.
    """
    attack = attacks.Square(steps=queries)
    logits = predict(file, images)
    right, classes = logits.argmax(-1) == labels, logits.shape[1]
    rows = np.flatnonzero(right).astype(np.int32)
    numbers = np.zeros(len(rows), np.int32)
    problem = attacks.Problem(
        image=jnp.asarray(images[rows]), label=jnp.asarray(labels[rows]),
        order=jnp.zeros((len(rows), 1), jnp.int32),  # it aims at no class
        number=jnp.asarray(numbers), key=trial_keys(jax.random.key(seed), rows, numbers),
        threat=threat,
    )  # fmt: skip

    @jax.jit
    def proposed(state: Any, number: jax.Array) -> jax.Array:
        """The images that a step asks about."""
        asked: list[jax.Array] = []

        def listen(given: jax.Array) -> jax.Array:
            asked.append(given)
            return jnp.zeros((len(given), classes), jnp.float32)

        attack.step(listen, problem, state, number)
        return asked[0]

    @jax.jit
    def answered(state: Any, number: jax.Array, logits: jax.Array) -> Any:
        """The state after a step that was told these logits."""
        return attack.step(lambda _: logits, problem, state, number)

    if not len(rows):
        return 0.0
    state = attack.start(lambda given: jnp.zeros((len(given), classes)), problem)
    for step in range(queries):
        number = jnp.full(len(rows), step, jnp.int32)
        state = answered(state, number, predict(file, np.asarray(proposed(state, number))))
        if state.worst.is_adversarial.all():
            break
    return float((~np.asarray(state.worst.is_adversarial)).sum() / len(images))


def _pgd(
    apply: Partial,
    images: np.ndarray,
    labels: np.ndarray,
    threat: attacks.Threat,
    steps: int,
    seed: int,
) -> np.ndarray:
    """The worst image that PGD visits, for each image: (N, H, W, C) float32."""
    run = functools.partial(
        attacks.once, apply, attacks.Pgd(gradient_steps=steps), threat=threat,
        key=jax.random.key(seed),
    )  # fmt: skip
    batch, found = min(BATCH, len(images)), []
    for first in range(0, len(images), batch):
        rows = np.minimum(np.arange(first, first + batch), len(images) - 1)  # one shape for all
        state = run(images=jnp.asarray(images[rows]), labels=jnp.asarray(labels[rows]))
        found.append(np.asarray(state.worst.image))
    return np.concatenate(found)[: len(images)]


def _images(
    network: "Network", data: Dataset | tuple[Any, Any] | str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, C) float32 in [0, 1] and labels (N,) int32."""
    if data is None:
        data = network.record["trained"]["dataset"]
    if isinstance(data, str):
        data = load_data(data)
    if isinstance(data, Dataset):
        network.check_classes(data)
        given = data.test.images, data.test.labels
    elif isinstance(data, tuple) and len(data) == 2:
        given = data
    else:
        raise UserError(f"give a data set, or (images, labels), not {type(data).__name__}")
    images, labels = check_set(*given)
    if images.shape[1:] != network.image_shape:
        raise UserError(f"images are {images.shape[1:]}, the network's {network.image_shape}")
    return images, labels


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(-1) == labels).mean())
