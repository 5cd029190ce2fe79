"""What a run consists of: the parts that stay, and those that change as it goes on."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from irp_jax import prng
from irp_jax.config import Config
from irp_jax.data import Dataset
from irp_jax.graph import ChannelGraph
from irp_jax.network import Network
from irp_jax.pruning.latency_table import MULTIPLE
from irp_jax.quantization import Quantization
from irp_jax.traced import TracedModel
from irp_jax.training import defenses
from irp_jax.training.defenses import Choice
from irp_jax.training.divergence import LossRecord
from irp_jax.training.overfitting import AccuracyRecord
from irp_jax.training.plan import Plan
from irp_jax.training.state import TrainState, initial_state


class Reporter(Protocol):
    """Receives the messages and the progress of a run, such as `report.console.terminal`."""

    def note(self, message: str) -> None: ...
    def begin(self, config: Config, plan: Plan, done: int) -> None: ...
    def progress(self, steps: int, images_per_s: float, metrics: dict[str, float]) -> None: ...
    def back_to(self, done: int) -> None: ...
    def epoch(self, row: dict[str, Any]) -> None: ...
    def attacking(self, name: str, robust: int) -> None: ...
    def evaluating(self, done: int, total: int, robust: int) -> None: ...
    def end(self, results: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a run that do not change.

    Attributes:
        config: of the run.
        identity: the settings and digests that decide the outcome, read at the start, because a
            user's file may change during the run.
        plan: of the run.
        dataset: on the host.
        model: the dense network.
        apply: (variables, images) -> logits, in inference mode.
        teacher: the saved network that teaches; None without one, and with a parent or the average.
        held_out: SHA-256 of the held-out images; empty if there are none.
        tested: SHA-256 of the test images.
        multiple: an exported file has zero channels up to multiples of this.
        mesh: the devices.
    """

    config: Config
    identity: dict[str, Any]
    plan: Plan
    dataset: Dataset
    model: TracedModel
    apply: Callable
    mesh: Mesh
    teacher: Network | None = None
    held_out: str = ""
    tested: str = ""
    multiple: int = MULTIPLE

    @property
    def graph(self) -> ChannelGraph:
        """The graph of the dense network."""
        return self.model.graph


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run: all that a checkpoint holds.

    Attributes:
        epoch: epochs completed.
        keep_counts: mask name -> units kept; empty before masks are frozen.
        seconds: time of the run so far, from loading the data on, without the time that a killed
            process spent after its last checkpoint.
        state: of training.
        defense: in use now.
        passes: pairs of a forward and a backward pass for each training image so far, without the
            guard's probes.
        images: images trained on so far, repeats and epochs undone by the guard included.
        rollbacks: one entry for each rollback, as in results.json: its cause and the changed
            setting.
        accuracy_record: the guard's record of accuracies under attack.
        clip: largest gradient norm now; 0 means no clipping.
        loss_record: the guard's record of the loss.
        parent: {"params", "batch_stats"} of the dense network that teaches, as `deployed` returns
            it; None before it teaches.
        quantization: the ranges of activations of the 8-bit network; None before it is trained so.
    """

    epoch: int
    keep_counts: dict[str, int]
    seconds: float
    state: TrainState
    defense: Choice
    passes: float
    images: int
    rollbacks: tuple[dict[str, Any], ...]
    accuracy_record: AccuracyRecord
    clip: float
    loss_record: LossRecord
    parent: dict[str, Any] | None = None
    quantization: Quantization | None = None

    def after(self, seconds: float) -> "Progress":
        """Returns the same progress with more time spent."""
        return dataclasses.replace(self, seconds=self.seconds + seconds)


def start(setup: Setup) -> Progress:
    """Returns the start of a run: the network with initial weights from its seed."""
    wanted = Choice(setup.config.defense, setup.config.attack_steps)

    @jax.jit
    def init(key: jax.Array) -> TrainState:
        params, batch_stats = setup.model.init(key)
        variables = {"params": params, "batch_stats": batch_stats}
        state = initial_state(setup.config, setup.plan, setup.graph, variables)
        return dataclasses.replace(
            state, memory=memory_of(setup, defenses.build(wanted, setup.config), key)
        )

    return Progress(
        epoch=0,
        keep_counts={},
        seconds=0.0,
        state=init(prng.key(setup.config.seed)),
        defense=wanted,
        passes=0.0,
        images=0,
        rollbacks=(),
        accuracy_record=AccuracyRecord(chance=1 / setup.dataset.num_classes),
        clip=setup.config.clip,
        loss_record=LossRecord.begin(
            setup.dataset.train.labels, setup.dataset.num_classes, setup.config.label_smoothing
        ),
    )


def memory_of(setup: Setup, defense: defenses.Defense, key: jax.Array) -> Any:
    """Returns a defense's initial memory of the training images."""
    # No step has this number, so no other draw uses this key.
    own = jax.random.fold_in(key, 2**32 - 1)
    return defense.memory(own, len(setup.dataset.train), setup.dataset.image_shape)
