"""What changes between two epochs: a parent begins to teach, masks are frozen, rounding begins."""

import dataclasses

import jax

from irp_jax import parallel, prng
from irp_jax.inference.function import deployed
from irp_jax.pruning import cost
from irp_jax.quantization import calibrate, calibration_images
from irp_jax.training.progress import Progress, Reporter, Setup
from irp_jax.training.state import freeze


def with_parent(setup: Setup, progress: Progress, reporter: Reporter) -> Progress:
    """Returns the run with its present dense network as the teacher of the later epochs."""
    assert not progress.keep_counts, "the parent is taken before the freeze"
    network = progress.state.network
    parent = jax.device_get(deployed(setup.graph, network, network["batch_stats"]))
    share = f"{setup.config.teacher_weight:.0%} of the target from now on"
    reporter.note(f"the dense network of {progress.epoch} epochs is the teacher: {share}")
    return dataclasses.replace(progress, parent=parent)


def frozen(setup: Setup, progress: Progress, reporter: Reporter) -> Progress:
    """Returns the run with frozen masks and, with channel masks, the compact network."""
    fresh = None
    if setup.plan.reinit:
        # A key that neither a step nor the initial weights use.
        key = jax.random.fold_in(prng.key(setup.config.seed), 2**32 - 2)
        drawn = jax.device_get(jax.jit(setup.model.init)(key))
        fresh = dict(zip(("params", "batch_stats"), drawn, strict=True))
    state, keep_counts = freeze(setup.config, setup.plan, setup.graph, progress.state, fresh)
    reporter.note(frozen_note(setup, keep_counts))
    state = parallel.place(state, parallel.replicated(setup.mesh))
    return dataclasses.replace(progress, keep_counts=keep_counts, state=state)


def quantized(setup: Setup, progress: Progress, reporter: Reporter) -> Progress:
    """Returns the run with the ranges of activations, which are fixed from now on.

    They are those of the network that would be deployed, on training images.
    """
    network = progress.state.network
    variables = jax.device_get(deployed(setup.graph, network, network["batch_stats"]))
    images = calibration_images(setup.dataset.train)
    found = calibrate(setup.model.network, variables, images)
    reporter.note(
        f"{setup.config.quantize} from now on: ranges of {len(found.ranges)} activations measured "
        f"on {len(images)} training images"
    )
    return dataclasses.replace(progress, quantization=found)


def frozen_note(setup: Setup, keep_counts: dict[str, int]) -> str:
    report, limit = cost.report(setup.graph, keep_counts), setup.plan.limit
    over = report[setup.config.cost] - limit  # only the published rule may exceed it
    return (
        f"masks frozen: {report['macs'] / 1e6:.2f}M of {report['dense_macs'] / 1e6:.2f}M MACs "
        f"({report['macs_ratio']:.1%}), "
        f"{report['params']:,} of {report['dense_params']:,} parameters"
        + (f", {report['latency_ratio']:.1%} of the latency" if "latency" in report else "")
        + (f", {over / limit:.1%} over the budget of {limit:,}" if over > 0 else "")
    )
