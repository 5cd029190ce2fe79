"""Times one Fast AT step of several trainers in turn: A B C, A B C, ...

Other work on the machine then slows all of them. Ratios within a round are reliable even if the
times drift.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from irp_jax import attacks, models, parallel, prng, traced
from irp_jax.config import Config
from irp_jax.data.augmentation import Augmentation
from irp_jax.errors import UserError
from irp_jax.pruning import cost
from irp_jax.pruning.masks import Granularity
from irp_jax.training import optimizer as optimizers
from irp_jax.training.defenses import DEFENSES
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import make_plan
from irp_jax.training.state import TrainState, freeze, initial_state
from irp_jax.training.step import Recipe, compile_steps

Burst = Callable[[], None]
"""Takes some training steps and returns when they are complete."""

IMAGE = (32, 32, 3)
IMAGES = 4096
AUGMENTATION = Augmentation(crop_padding=4, flip=True)


class Trainers:
    """The trainers to compare, with the same network, weights, images and batches.

    Attributes:
        config: model, budget and batch size; other settings have their defaults.
        plan: the default plan of a CIFAR-10 run.
        steps: steps of one burst, compiled into one program, as in training.
        cost_ratio: MACs of the compact network divided by those of the dense network.
    """

    def __init__(self, config: Config, steps: int) -> None:
        self.config, self.steps, self.cost_ratio = config, steps, float("nan")
        self.model = traced.named(config.model, config.width, IMAGE, 10)
        self.graph = self.model.graph
        self.plan = make_plan(config, METHODS[config.method], self.graph, 49_000)
        params, batch_stats = jax.jit(self.model.init)(prng.key(config.seed))
        self.variables = {"params": params, "batch_stats": batch_stats}
        random = np.random.default_rng(config.seed)
        self.images = random.integers(0, 256, (IMAGES, *IMAGE), dtype=np.uint8)
        self.labels = random.integers(0, 10, IMAGES, dtype=np.int32)
        self.batches = random.integers(0, IMAGES, (steps, config.batch_size), dtype=np.int32)

    def dense_step(self) -> Burst:
        """Returns a burst of the dense network without masks."""
        params = {"weights": self.variables["params"], "masks": {}}
        optimizer = optimizers.build(self.config, self.plan, self.graph, frozen=True)
        state = TrainState(
            jnp.zeros((), jnp.int32), params, self.variables["batch_stats"], optimizer.init(params)
        )
        return self._compile(optimizer, state)

    def masked_step(self, granularity: Granularity) -> Burst:
        """Returns a burst with masks that are learned, as in the first part of a run."""
        config = self._with(granularity)
        state = initial_state(config, self.plan, self.graph, self.variables)
        optimizer = optimizers.build(config, self.plan, self.graph, frozen=False)
        return self._compile(optimizer, state)

    def compact_step(self) -> Burst:
        """Returns a burst of the compact network, as in the rest of a run.

        Every channel group loses the same share, up to whole channels.
        """
        config = self._with("channel")
        state = initial_state(config, self.plan, self.graph, self.variables)
        ranks = {name: -np.arange(n) / n for name, n in self.graph.groups.items()}
        params = {**state.params, "masks": ranks}
        ranked = TrainState(state.step, params, state.batch_stats, state.optimizer)
        frozen, kept = freeze(config, self.plan, self.graph, ranked)
        optimizer = optimizers.build(config, self.plan, self.graph, frozen=True)
        self.cost_ratio = cost.total(self.graph, kept).macs / cost.total(self.graph).macs
        return self._compile(optimizer, frozen)

    def torch_step(self, device: str, *, masked: bool = False, graphed: bool = False) -> Burst:
        """Returns a burst of PyTorch, channels-last; on a CPU with one thread per core.

        Args:
            device: "cpu" or "cuda".
            masked: whether every kernel is multiplied by a mask.
            graphed: whether the step is a CUDA graph instead of eager.

        Raises:
            UserError: there is no PyTorch version of this network here.
        """
        from irp_jax.benchmark import torch_device, torch_resnet

        spec = self.config
        model = None if models.is_file(spec.model) else models.build(spec.model, 10, spec.width)
        if not isinstance(model, models.ResNet):
            raise UserError(
                f"there is no PyTorch version of {self.config.model}: give --no-torch, or "
                "--model=resnet20/32/44/56/110/resnet18"
            )
        weights = jax.device_get(self.variables["params"])
        twin = torch_resnet.build(model.blocks, model.widths, weights, masked=masked, device=device)
        torch_device.compute(device, fast=False)
        self._check_equal(twin, torch_resnet.logits, torch_device.AGREEMENT[device])
        torch_device.compute(device, fast=True)
        step = torch_resnet.fast_step(twin, self.images, self.labels, self.config.epsilon)
        if graphed:
            step = torch_resnet.graphed(step, torch_resnet.indices(self.batches, device)[0])

        def burst() -> None:
            for batch in torch_resnet.indices(self.batches, device):
                step(batch)
            torch_device.wait(device)

        return burst

    def _check_equal(self, twin: Any, logits: Callable, tolerance: float) -> None:
        """Checks that both networks have the same output in training mode, up to `tolerance`."""
        images = self.images[: self.config.batch_size].astype(np.float32) / 255
        variables = self.variables
        forward = jax.jit(self.model.network, static_argnames="train")
        with jax.default_matmul_precision("float32"):
            ours, _ = forward(variables["params"], variables["batch_stats"], images, train=True)
        np.testing.assert_allclose(
            np.asarray(ours), logits(twin, images), atol=tolerance, rtol=tolerance
        )

    def _with(self, granularity: Granularity) -> Config:
        return dataclasses.replace(self.config, granularity=granularity)

    def _compile(self, optimizer: optax.GradientTransformation, state: TrainState) -> Burst:
        config = self.config
        mesh = parallel.mesh(parallel.usable_devices(config.batch_size))
        recipe = Recipe(
            graph=self.graph, cost_kind="macs", threat=attacks.linf(config.epsilon),
            defense=DEFENSES[config.defense], augmentation=AUGMENTATION,
            label_smoothing=config.label_smoothing,
        )  # fmt: skip
        run = compile_steps(recipe, self.model.network, optimizer, mesh)
        whole = parallel.replicated(mesh)
        images, labels = parallel.place((self.images, self.labels), whole)
        key = parallel.place(prng.key(config.seed), whole)
        # A copy, because the state is donated and all trainers start from the same arrays.
        state = parallel.place(jax.tree.map(np.array, jax.device_get(state)), whole)

        def burst() -> None:
            nonlocal state
            state, _ = run(state, key, images, labels, self.batches)
            jax.block_until_ready(state)

        return burst


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds per step, one entry per round.

    Attributes:
        wall: elapsed time.
        cpu: CPU time of all threads of this process. It varies less on a machine with other work.
    """

    wall: list[float]
    cpu: list[float]


def interleaved(
    bursts: Mapping[str, Burst], rounds: int, steps: int, progress: Callable[[int], None]
) -> dict[str, Times]:
    """Times every trainer once per round.

    Args:
        bursts: name -> burst of `steps` steps.
        rounds: number of rounds. Two untimed bursts of each trainer run first, to compile
            everything.
        steps: steps of a burst.
        progress: is told the number of rounds done.
    """
    for burst in bursts.values():
        burst()
        burst()
    times = {name: Times([], []) for name in bursts}
    for done in range(rounds):
        for name, burst in bursts.items():
            wall, cpu = time.perf_counter(), time.process_time()
            burst()
            times[name].wall.append((time.perf_counter() - wall) / steps)
            times[name].cpu.append((time.process_time() - cpu) / steps)
        progress(done + 1)
    return times
