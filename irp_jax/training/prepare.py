"""Prepares a run: loads its data, traces its network, checks all settings against both."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from irp_jax import checkpoint, data, hosts, latency, models, parallel, traced
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.data import Dataset, FileSplit
from irp_jax.errors import UserError
from irp_jax.inference.function import inference
from irp_jax.pruning.latency_table import MULTIPLE
from irp_jax.training import image_source, teacher
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import Plan, make_plan
from irp_jax.training.progress import Setup


def prepare(
    config: Config,
    note: Callable[[str], None],
    *,
    model: Any = None,
    dataset: Dataset | None = None,
    variables: Any = None,
) -> tuple[Setup, list[str]]:
    """Prepares a run. It writes no file.

    Args:
        config: settings of the run.
        note: is told what the teacher is.
        model, dataset, variables: see `experiment.run`.

    Returns:
        The setup of the run, and notes for its user.

    Raises:
        UserError: the run cannot be done with these settings.
    """
    config = dataclasses.replace(config, budget=str(config.budget))
    given = {"model": model, "dataset": dataset}
    configs.check(config, [name for name, value in given.items() if value is not None])
    identity = configs.identity(config, in_memory=dataset is not None)
    if dataset is not None:
        identity["dataset_sha256"] = data.digest(dataset)
    found = dataset or data.load(
        config.dataset, data_dir=config.data_dir, validation_fraction=config.validation,
        image_size=config.image_size,
    )  # fmt: skip
    used = _used(config, found)
    subject, multiple = _subject(config, used, model, variables)
    if model is not None or models.is_file(config.model):
        identity["model_fingerprint"] = subject.fingerprint
    taught_by = teacher.load(config, used, note)
    if taught_by is not None:
        identity["teacher_sha256"] = checkpoint.digest(taught_by.variables)
    longest = image_source.longest_segment(
        config, used.image_shape, isinstance(used.train, FileSplit)
    )
    plan = make_plan(config, METHODS[config.method], subject.graph, len(used.train), longest)
    _check_subject(config, plan, subject)
    if hosts.is_several():
        hosts.check_same("settings or images", [identity, data.digest(used)])
    setup = Setup(
        config=config, identity=identity, plan=plan, dataset=used, model=subject,
        apply=inference(subject.network),
        mesh=parallel.mesh(parallel.usable_devices(config.batch_size)), teacher=taught_by,
        held_out=data.split_digest(used.validation), tested=data.split_digest(used.test),
        multiple=multiple,
    )  # fmt: skip
    notes = [
        *configs.unused(config),
        *(validation_note(config, found) if dataset is None else []),
        *_unpruned_notes(subject),
        *_short_parent_note(plan),
    ]
    return setup, notes


def _used(config: Config, dataset: Dataset) -> Dataset:
    """Returns the data set with the training images that the run uses."""
    if config.train_images:
        dataset = data.limited(dataset, config.train_images)
    if config.evaluate_on == "validation" and not len(dataset.validation):
        raise UserError(
            f"--evaluate-on=validation needs images held out, and --validation="
            f"{config.validation:g} holds out none of {len(dataset.train):,}: give 0.1 for a tenth"
        )
    return dataset


def _subject(
    config: Config, dataset: Dataset, model: Any, variables: Any
) -> tuple[traced.TracedModel, int]:
    """Returns the traced network, and the multiple to which its files pad channels."""
    shape, classes = dataset.image_shape, dataset.num_classes
    if model is None:
        subject = traced.named(
            config.model, config.width, shape, classes, config.seed, config.activation
        )
    else:
        subject = traced.trace(model, shape, classes, variables=variables)
    if config.cost == "latency":
        return latency.attached(subject, config.latency_table, config.latency_device)
    return subject, MULTIPLE


def _check_subject(config: Config, plan: Plan, subject: traced.TracedModel) -> None:
    """Raises UserError if the network cannot be pruned, quantized or drawn as the run needs."""
    if config.granularity == "channel":
        traced.check(subject)
    if config.quantize:
        traced.check_quantized(subject, config.batch_size)
    if plan.reinit and not traced.is_drawn(subject):
        raise UserError(
            f"--reinit needs new weights, but the weights of {subject.name} are given: leave it out"
        )


# ---- notes ---------------------------------------------------------------------------------------


def validation_note(config: Config, dataset: Dataset) -> list[str]:
    """Returns a note if --validation is given and the user's data have validation images."""
    count = len(dataset.validation)
    drawn = data.validation_size(config.validation, len(dataset.train) + count)
    most = data.IN_MEMORY // math.prod(dataset.image_shape)  # of a folder, no more are held out
    if config.validation == configs.suited(config.dataset).validation or count in (drawn, most):
        return []
    return [f"--validation changes nothing: {config.dataset} has {count} images held out already"]


def _short_parent_note(plan: Plan) -> list[str]:
    """Returns a note if the parent trains for only a few epochs."""
    if plan.parent_epoch is None or plan.parent_epoch >= 0.1 * plan.epochs:
        return []
    return [
        f"the teacher is the dense network after {plan.parent_epoch} of {plan.epochs} epochs, "
        f"which is short: --prune-start=0.2 --prune-stop=0.3 would train it longer"
    ]


def _unpruned_notes(subject: traced.TracedModel) -> list[str]:
    """Returns notes on layers that cannot be pruned, except the logits."""
    kept = [whole for whole in subject.graph.whole if whole.reason != "the logits"]
    lines = [f"{w.name}: {w.channels} channels kept whole ({w.reason})" for w in kept[:3]]
    more = [f"and {len(kept) - 3} more layers: see bin/describe"] if kept[3:] else []
    return lines + more
