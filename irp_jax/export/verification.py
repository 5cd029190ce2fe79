"""Compares an exported file with its network on the same images."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from irp_jax import attacks, checkpoint, machine
from irp_jax.attacks.checks import check_set
from irp_jax.attacks.trials import trial_keys
from irp_jax.errors import UserError
from irp_jax.export import artifact as artifacts
from irp_jax.export.artifact import Artifact
from irp_jax.export.file import serialized, with_zero_channels
from irp_jax.export.timing import measured
from irp_jax.inference.images import Images, images_of
from irp_jax.inference.network import TrainedNetwork
from irp_jax.quantization import Quantization

BATCH = 256
"""Batch size for file and network."""


def verify(
    artifact: str | Path,
    network: TrainedNetwork,
    data: Images = None,
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

    PGD uses the gradients of the network. Both the network and the file classify the images that
    PGD finds. Square needs no gradients, so it attacks the file directly, in the file's runtime.
    For an 8-bit file PGD also attacks its emulation in JAX, which has gradients.

    Args:
        artifact: path of the file.
        network: the network that the file was exported from.
        data: a data set or its name, whose test images are used; or a pair of images (N, H, W, C),
            uint8 or float in [0, 1], and labels (N,). None for the data set of training.
        model: the model, if it is not one of `irp_jax.models`. Latency is compared with the dense
            network, which needs it.
        epsilon: L-inf radius of both attacks in [0, 1]; None for the radius of training.
        steps: number of PGD steps, from one random start, with step size epsilon / 4.
        queries: number of queries of Square per image; 0 leaves Square out.
        rounds: number of timed runs of each file; 0 leaves latency out.
        threads: number of threads of onnxruntime or LiteRT.
        seed: seed of the attacks.

    Returns:
        A dictionary with these keys, all accuracies in [0, 1]:
            `artifact`: format, size in bytes, number of operators, digest and metadata of the file.
            `images`, `epsilon`: number of images, and the radius.
            `natural`, `pgd`: accuracies of `network`, in float32, and `file`.
            `square`: accuracy of the file.
            `agreement`: share of images with the same prediction.
            `max_difference`: largest absolute difference of a logit.
            `latency`: see `timing.measured`; and `threads`.
            `emulation`, for an 8-bit file: `natural`, `pgd`, `agreement` and `max_difference` of
                its emulation and the file. PGD uses the gradients of the emulation.

    Raises:
        UserError: a number is out of range, the file cannot be read, the file is of another
            network, or the images do not fit the network.
    """
    for name, value in (("queries", queries), ("rounds", rounds), ("threads", threads)):
        if value < (name == "threads"):
            raise UserError(f"{name} must be at least {int(name == 'threads')}, got {value}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    file = artifacts.load(artifact, threads=threads)
    check_network(file, network, artifact)
    images, labels = check_set(*images_of(network, data))
    threat = attacks.linf(network.epsilon if epsilon is None else epsilon)
    rounded, network = (
        file_network(file, network, model),
        network.with_quantization(None, model=model),
    )
    there = predict(file, images)
    shown = (file, there, images, labels, threat, steps, seed)
    report: dict[str, Any] = {
        "artifact": {
            "format": file.format, "bytes": file.size, "nodes": file.nodes,
            "sha256": file.sha256, "metadata": dict(file.facts),
        },
        "images": len(images),
        "epsilon": float(threat.epsilon),
        **_compared("network", network, *shown),
    }  # fmt: skip
    if rounded is not None:
        report["emulation"] = _compared("emulation", rounded, *shown)
    if queries:
        report["square"] = {
            "queries": queries, "file": square(file, images, labels, threat, queries, seed)
        }  # fmt: skip
    if rounds:
        beside = _beside(file, network, rounded is not None, model, threads)
        for name, other in beside.items():
            report["artifact"][f"{name}_bytes"] = other.size
        report["latency"] = measured({"compact": file, **beside}, images[:64], rounds=rounds)
        # JAX uses all cores.
        report["threads"] = machine.cores() if file.format == "stablehlo" else threads
    return report


def _beside(
    file: Artifact, network: TrainedNetwork, is_rounded: bool, model: Any, threads: int
) -> dict[str, Artifact]:
    """Returns files to compare size and latency with: name -> file of the same format and layout.

    These are the network in float32, for an 8-bit file, and the dense network, if its model is
    known.
    """
    found = {}
    if is_rounded:
        found["float32"] = with_zero_channels(network, artifacts.multiple(file.facts), model)
    dense = network.dense(model)
    if dense is not None:
        found["dense"] = dense
    return {
        name: artifacts.from_bytes(
            serialized(other, file.format, layout=file.layout), file.format, file.facts,
            threads=threads,
        )
        for name, other in found.items()
    }  # fmt: skip


def file_network(
    file: Artifact, network: TrainedNetwork, model: Any = None
) -> TrainedNetwork | None:
    """Returns the network that computes in JAX as an 8-bit file does; None for other files.

    Raises:
        UserError: the ranges in the file are damaged, or see `Network.with_quantization`.
    """
    stored = file.facts.get("quantization")
    if stored is None:
        return None
    try:
        ranges = json.loads(stored)
    except json.JSONDecodeError:
        ranges = None
    return network.with_quantization(Quantization.of(ranges), model=model)


def _compared(
    name: str,
    network: TrainedNetwork,
    file: Artifact,
    there: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    threat: attacks.Threat,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Compares a file with a network. PGD uses the gradients of the network.

    Args:
        name: key of the network's accuracies.
        network: the network.
        file: the file.
        there: its logits (N, K).
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) int32.
        threat: the ball of PGD.
        steps: number of PGD steps.
        seed: seed of PGD.
    """
    apply = Partial(network.apply, jax.device_put(network.variables))
    batch_size = min(BATCH, len(images))
    here = attacks.predict(apply, images, batch_size=batch_size)
    found = _pgd(apply, images, labels, threat, steps, seed)
    attacked = attacks.predict(apply, found, batch_size=batch_size)
    return {
        "natural": {name: _accuracy(here, labels), "file": _accuracy(there, labels)},
        "agreement": float((here.argmax(-1) == there.argmax(-1)).mean()),
        "max_difference": float(np.abs(here - there).max()),
        "pgd": {
            "steps": steps,
            name: _accuracy(attacked, labels),
            "file": _accuracy(predict(file, found), labels),
        },
    }


def check_network(file: Artifact, network: TrainedNetwork, path: str | Path) -> None:
    """Checks that a file was exported from a network.

    Args:
        file: the file.
        network: the network.
        path: path of the file, for the message.

    Raises:
        UserError: the file is of another network; the message says how they differ.
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
            f"{path} is of another network or of other weights: give the network that it was "
            f"exported from, or export this one again"
        )


def predict(file: Artifact, images: np.ndarray) -> np.ndarray:
    """Returns the logits (N, K) that a file computes for images (N, H, W, C), float32."""
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
    """Returns the accuracy of a file under Square, which needs logits but no gradients.

    The runtime of the file cannot run inside a compiled function of JAX. So each step is compiled
    in two halves: one returns the images to query, the other takes their logits.

    Args:
        file: the file to attack.
        images: (N, H, W, C) float32 in [0, 1].
        labels: (N,) int32.
        threat: the ball of allowed perturbations.
        queries: number of steps of the attack.
        seed: seed of the attack.
    """
    attack = attacks.Square(steps=queries)
    logits = predict(file, images)
    right, classes = logits.argmax(-1) == labels, logits.shape[1]
    rows = np.flatnonzero(right).astype(np.int32)
    numbers = np.zeros(len(rows), np.int32)
    problem = attacks.Problem(
        image=jnp.asarray(images[rows]), label=jnp.asarray(labels[rows]),
        order=jnp.zeros((len(rows), 1), jnp.int32),  # Square is untargeted
        number=jnp.asarray(numbers), key=trial_keys(jax.random.key(seed), rows, numbers),
        threat=threat,
    )  # fmt: skip

    @jax.jit
    def proposed(state: Any, number: jax.Array) -> jax.Array:
        """Returns the images that a step queries."""
        asked: list[jax.Array] = []

        def listen(given: jax.Array) -> jax.Array:
            asked.append(given)
            return jnp.zeros((len(given), classes), jnp.float32)

        attack.step(listen, problem, state, number)
        return asked[0]

    @jax.jit
    def answered(state: Any, number: jax.Array, logits: jax.Array) -> Any:
        """Returns the state after a step that received these logits."""
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
    """Returns the worst iterate of PGD for each image, (N, H, W, C) float32."""
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


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(-1) == labels).mean())
