"""Runs one config: loads, trains, freezes the masks, trains on, evaluates. A run can be resumed."""

import dataclasses
import math
import time
from typing import Any

import jax

from irp_jax import (
    attacks,
    checkpoint,
    data,
    evaluation,
    files,
    hosts,
    latency,
    models,
    parallel,
    traced,
)
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.data import Dataset, FileSplit
from irp_jax.errors import UserError
from irp_jax.inference import deployed, inference
from irp_jax.network import Network
from irp_jax.pruning import cost
from irp_jax.pruning.latency_table import MULTIPLE
from irp_jax.record import cost_report, described
from irp_jax.results import check_version
from irp_jax.training import logs, loop, source, teacher
from irp_jax.training.methods import METHODS
from irp_jax.training.plan import Plan, make_plan
from irp_jax.training.preemption import on_sigterm
from irp_jax.training.progress import (
    Progress,
    Reporter,
    Setup,
    network_record,
    resume,
    start,
)


def run(
    config: Config,
    reporter: Reporter,
    command: str,
    *,
    model: Any = None,
    dataset: Dataset | None = None,
    variables: Any = None,
) -> dict[str, Any]:
    """Trains, prunes, evaluates and saves a network.

    Args:
        config: settings of the run.
        reporter: receives messages and progress.
        command: the user's command line, for results.json.
        model: a network to train instead of the one that the config names: see `adapters.adapt`.
        dataset: a data set to use instead of the one that the config names.
        variables: initial weights of `model`.

    Returns:
        The content of results.json. The network is saved in `network` in the workdir.

    Raises:
        UserError: the run cannot be done with these settings. Files written before are complete.
        Preempted: SIGTERM stopped the run, and it can be resumed. It is a SystemExit.
    """
    began = time.monotonic()
    config = dataclasses.replace(config, budget=str(config.budget))
    given = {"model": model, "dataset": dataset}
    configs.check(config, [name for name, value in given.items() if value is not None])
    workdir, identity = configs.workdir(config), configs.identity(config)
    if dataset is None:
        dataset = data.load(
            config.dataset, data_dir=config.data_dir, validation_fraction=config.validation,
            image_size=config.image_size,
        )  # fmt: skip
        notes = [*configs.unused(config), *_validation_given(config, dataset)]
    else:
        identity["dataset_sha256"], notes = data.digest(dataset), configs.unused(config)
    shape, classes = dataset.image_shape, dataset.num_classes
    longest = source.longest_segment(config, shape, isinstance(dataset.train, FileSplit))
    if config.train_images:
        dataset = data.limited(dataset, config.train_images)
    if config.evaluate_on == "validation" and not len(dataset.validation):
        raise UserError(
            f"--evaluate-on=validation needs images held out, and --validation="
            f"{config.validation:g} holds out none of {len(dataset.train):,}: give 0.1 for a tenth"
        )
    if model is None:
        subject = traced.named(
            config.model, config.width, shape, classes, config.seed, config.activation
        )
    else:
        subject = traced.trace(model, shape, classes, variables=variables)
    multiple = MULTIPLE
    if config.cost == "latency":
        subject, multiple = latency.attached(subject, config.latency_table, config.latency_device)
    if model is not None or models.is_file(config.model):
        identity["model_fingerprint"] = subject.fingerprint
    taught_by = teacher.load(config, dataset, reporter.note)
    if taught_by is not None:
        identity["teacher_sha256"] = checkpoint.digest(taught_by.variables)
    plan = make_plan(config, METHODS[config.method], subject.graph, len(dataset.train), longest)
    if config.granularity == "channel":
        traced.check(subject)
    if config.quantize:
        traced.check_quantized(subject, config.batch_size)
    if plan.reinit and not traced.is_drawn(subject):
        raise UserError(
            f"--reinit needs new weights, but the weights of {subject.name} are given: leave it out"
        )
    setup = Setup(
        config=config, identity=identity, plan=plan, dataset=dataset, model=subject,
        apply=inference(subject.network),
        mesh=parallel.mesh(parallel.usable_devices(config.batch_size)), teacher=taught_by,
        held_out=data.split_digest(dataset.validation), tested=data.split_digest(dataset.test),
        multiple=multiple,
    )  # fmt: skip
    copies = logs.make(config.log_to if hosts.is_first() else "", workdir, configs.settings(config))
    if hosts.is_several():
        hosts.check_same("settings or images", [identity, data.digest(dataset)])
    commit = files.commit()  # read now, because the files may change during the run
    with files.claim(workdir, identity), on_sigterm(reporter.note) as preemption:
        finished = files.read_json(workdir / "results.json") if hosts.is_first() else None
        finished = hosts.agreed(finished)
        if finished is not None:
            if not isinstance(finished, dict) or finished.get("identity") != identity:
                raise UserError(
                    f"{workdir / 'results.json'} is not of this run: move it away, or choose "
                    f"another --workdir"
                )
            check_version(finished, workdir / "results.json", "--workdir")
            reporter.note(f"{workdir} is finished: showing its results")
            reporter.end(finished)
            return finished
        reporter.note(f"run in {workdir}")
        for line in [*notes, *_unpruned_notes(subject), *_short_parent_note(plan)]:
            reporter.note(line)
        progress = resume(setup, workdir, reporter.note)  # raises UserError for another run
        everything = {"identity": identity, "settings": configs.settings(config)}
        files.write_json(workdir / "config.json", everything | {"target": plan.ratio})
        progress = progress or start(setup)
        progress = progress.after(time.monotonic() - began)
        with logs.closed(copies):
            progress = loop.train(setup, progress, workdir, reporter, copies, preemption)
        trained = _network(setup, progress, workdir)
        results = _evaluate(setup, progress, trained, reporter) | {
            "environment": parallel.describe(),
            "command": command,
            "commit": commit,
            "layers": cost.table(setup.graph, progress.keep_counts),
            "history": trained.history,
        }
        trained.save(workdir / "network")
        files.write_json(workdir / "results.json", results)
    results = hosts.agreed(results)  # all files are written when this returns
    reporter.end(results)
    return results


def _validation_given(config: Config, dataset: data.Dataset) -> list[str]:
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


# ---- the final network and its results -------------------------------------------------------


def _network(setup: Setup, progress: Progress, workdir: Any) -> Network:
    """Returns the trained network."""
    state = progress.state.network
    variables = jax.device_get(deployed(setup.graph, state, state["batch_stats"]))
    record = network_record(setup, progress.keep_counts, progress.quantization)
    return Network(
        apply=inference(setup.model.network, progress.quantization),
        variables=variables,
        record=described(record, setup.graph, progress.keep_counts, progress.epoch),
        history=files.read_log(workdir / "metrics.jsonl") if hosts.is_first() else [],
    )


def _evaluate(
    setup: Setup, progress: Progress, trained: Network, reporter: Reporter
) -> dict[str, Any]:
    """Evaluates natural and PGD accuracy of the deployed network.

    Returns:
        The content of results.json, without environment, command, commit, layers and history.
    """
    config = setup.config
    spec = evaluation.AttackSpec(epsilon=config.epsilon)
    held_out = config.evaluate_on == "validation"
    measured = setup.dataset.validation if held_out else setup.dataset.test
    began = time.monotonic()
    everything = (trained.apply, trained.variables, measured.images, measured.labels, spec)
    how: dict[str, Any] = {
        "batch_size": parallel.attacked_at_once(setup.mesh, *setup.dataset.image_shape[:2]),
        "mesh": setup.mesh,
        "callbacks": attacks.Callbacks(
            begin=reporter.attacking, progress=reporter.evaluating, warn=reporter.note
        ),
    }
    report = evaluation.evaluate(*everything, **how)
    last = evaluation.last_iterate(*everything, report, **how)
    seconds = time.monotonic() - began
    plan, left = setup.plan, cost_report(setup.graph, progress.keep_counts)
    unused = round(1 - left[config.cost] / plan.limit, 6)
    return {
        "model": config.model,
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "budget": {"kind": config.cost, "target": plan.target, "unused": unused},
        "cost": left,
        "accuracy": {
            "natural": report.natural, "pgd": report.robust, "pgd-last": last.robust,
        },
        "attack": spec.describe() | {"images": len(measured)},
        "epochs": plan.epochs,
        "defense": progress.defense.name,
        "passes_per_image": round(progress.passes, 3),
        "rollbacks": list(progress.rollbacks),
        "wall_time_s": round(progress.seconds + seconds, 1),
        "images_per_s": round(progress.images / progress.seconds, 1),
        "network_sha256": checkpoint.digest(trained.variables),
        "identity": setup.identity,
        "config": configs.settings(config),
        "keep_counts": progress.keep_counts,
        **({"quantization": config.quantize} if progress.quantization else {}),
    }  # fmt: skip
