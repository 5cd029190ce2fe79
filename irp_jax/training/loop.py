"""A run from its config to its results: load, train, freeze, train on, evaluate; resumable."""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from irp_jax import attacks, checkpoint, data, evaluation, files, models, parallel
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.network import cost_report, deployed, inference
from irp_jax.pruning import cost, slim
from irp_jax.training import epochs, phases
from irp_jax.training.progress import Progress, Setup, architecture_now, resume, start
from irp_jax.training.reporter import Reporter


def run(config: Config, reporter: Reporter, command: str) -> dict[str, Any]:
    """Trains, prunes, evaluates and saves.

    Args:
        config: what to do.
        reporter: is told how it goes.
        command: the user's command line, for results.json.

    Returns:
        What results.json holds.

    Raises:
        UserError: the run cannot be done as asked; nothing is written that was not complete.
    """
    began = time.monotonic()
    config = dataclasses.replace(config, budget=str(config.budget))
    configs.check(config)
    if jax.process_count() > 1:
        raise UserError("training runs on the devices of one host: start it on one host alone")
    workdir, identity = configs.workdir(config), configs.identity(config)
    dataset = data.load(
        config.dataset, data_dir=config.data_dir, validation_fraction=config.validation
    )
    notes = [*configs.unused(config), *_validation_given(config, dataset)]
    if config.train_images:
        dataset = data.limited(dataset, config.train_images)
    if config.evaluate_on == "validation" and not len(dataset.validation):
        raise UserError(
            f"--evaluate-on=validation needs images held out, and --validation="
            f"{config.validation:g} holds out none of {len(dataset.train):,}: give 0.1 for a tenth"
        )
    model = models.build(config.model, dataset.num_classes, config.width)
    dense = models.describe(model, dataset.image_shape, dataset.num_classes)
    plan = phases.plan(config, dense, len(dataset.train))
    network = models.forward(model)
    if config.regularity == "channel":
        image = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.float32)
        init = functools.partial(model.init, train=False)
        slim.check(dense, network, jax.eval_shape(init, jax.random.key(0), image), image)
    setup = Setup(
        config=config, identity=identity, plan=plan, dataset=dataset, dense=dense, network=network,
        apply=inference(network), mesh=parallel.mesh(parallel.usable_devices(config.batch_size)),
    )  # fmt: skip
    commit = files.commit()  # now: the files may change while this process runs on
    # Text left empty is not part of the identity, but no run's whose folder says otherwise.
    with files.claim(workdir, {"channels": "", **identity}):
        finished = files.read_json(workdir / "results.json")
        if finished is not None:
            if not isinstance(finished, dict) or finished.get("config") != files.as_json(identity):
                raise UserError(
                    f"{workdir / 'results.json'} is not of this run: move it away, or choose "
                    f"another --workdir"
                )
            reporter.note(f"{workdir} is finished: showing its results")
            reporter.end(finished)
            return finished
        reporter.note(f"run in {workdir}")
        for line in notes:
            reporter.note(line)
        progress = resume(setup, workdir, reporter.note)  # refuses checkpoints of another run
        everything = dataclasses.asdict(config) | identity
        files.write_json(workdir / "config.json", everything)
        progress = progress or start(setup, model)
        progress = progress.after(time.monotonic() - began)
        progress = epochs.train(setup, progress, workdir, reporter)
        results = _evaluate(setup, progress, reporter) | {
            "environment": parallel.describe(),
            "command": command,
            "commit": commit,
            "layers": cost.table(dense, progress.kept),
            "history": files.read_log(workdir / "metrics.jsonl"),
        }
        files.write_json(workdir / "results.json", results)
    reporter.end(results)
    return results


def _validation_given(config: Config, dataset: data.Dataset) -> list[str]:
    """What to say where a share is asked for, and the user's file brings its own images."""
    count = len(dataset.validation)
    drawn = data.validation_size(config.validation, len(dataset.train) + count)
    if config.validation == configs.suited(config.dataset).validation or count == drawn:
        return []
    return [f"--validation changes nothing: {config.dataset} has {count} images held out already"]


# ---- the final number ------------------------------------------------------------------------


def _evaluate(setup: Setup, progress: Progress, reporter: Reporter) -> dict[str, Any]:
    """Natural and PGD accuracy of the deployed network, and the run's facts."""
    config, network = setup.config, progress.state.network
    spec = evaluation.AttackSpec(epsilon=config.epsilon)
    architecture = architecture_now(setup, progress.kept)
    variables = deployed(architecture, network, network["batch_stats"])
    held_out = config.evaluate_on == "validation"
    measured = setup.dataset.validation if held_out else setup.dataset.test
    began = time.monotonic()
    report = evaluation.evaluate(
        setup.apply, variables, measured.images, measured.labels, spec,
        batch_size=parallel.attacked_at_once(setup.mesh, *setup.dataset.image_shape[:2]),
        mesh=setup.mesh,
        watch=attacks.Watch(
            begin=reporter.attacking, progress=reporter.evaluating, warn=reporter.note
        ),
    )  # fmt: skip
    seconds = time.monotonic() - began
    plan, left = setup.plan, cost_report(setup.dense, progress.kept)
    unused = round(1 - left[config.cost] / plan.limit, 6)
    return {
        "model": config.model,
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "budget": {"kind": config.cost, "target": plan.target, "unused": unused},
        "cost": left,
        "accuracy": {"natural": report.natural, "pgd": report.robust},
        "attack": spec.describe() | {"images": len(measured)},
        "epochs": plan.epochs,
        "defense": progress.defense.name,
        "passes_per_image": round(progress.passes, 3),
        "retreats": list(progress.retreats),
        "wall_time_s": round(progress.seconds + seconds, 1),
        "images_per_s": round(progress.images / progress.seconds, 1),
        "network_sha256": checkpoint.digest(variables),
        "config": setup.identity,
        "kept": progress.kept,
    }
