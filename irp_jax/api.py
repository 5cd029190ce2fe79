"""The Python interface: the commands as functions."""

import dataclasses
import operator
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from irp_jax import checkpoint, data, files, hosts, loading, machine, models, traced
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.data import Dataset, FileSplit
from irp_jax.errors import UserError, extra, in_python, unknown
from irp_jax.export.measure import measure
from irp_jax.graph import ChannelGraph
from irp_jax.network import Network
from irp_jax.pruning.latency_table import LatencyTable
from irp_jax.report.console.terminal import Terminal
from irp_jax.sweep import one_run
from irp_jax.sweep import runs as sweeps
from irp_jax.training import experiment

Callback = Callable[[dict[str, Any]], None]
"""Called after each epoch with a dict: "epoch", "loss", "natural", "pgd", "cost_ratio" and more."""


@in_python
def load_data(
    name: str,
    *,
    data_dir: str | None = None,
    validation: float | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Loads a data set.

    Args:
        name: "digits" (embedded), "cifar10", "cifar100", "svhn_cropped", "mnist", "fashion_mnist",
            or the path of an .npz file or of a folder of images (see docs/own_data.md).
        data_dir: folder of downloaded sets, or to download to.
        validation: fraction of the training images to hold out; None for the default of the data
            set.
        image_size: height and width to which the images of a folder are brought; 224 if None.

    Raises:
        UserError: the name is unknown, the file or folder is not valid, or the download failed.

    >>> load_data("digits").image_shape
    (8, 8, 1)
    """
    share = configs.suited(name).validation if validation is None else validation
    return data.load(name, data_dir=data_dir, validation_fraction=share, image_size=image_size)


@in_python
def from_arrays(
    images: Any,
    labels: Any,
    test_images: Any,
    test_labels: Any,
    *,
    class_names: Sequence[str] | None = None,
    validation: float = 0.1,
    name: str = "arrays",
) -> Dataset:
    """Makes a data set of your own arrays.

    Args:
        images: training images (N, H, W) or (N, H, W, 1 or 3), uint8, or floats in [0, 1].
        labels: (N,) integers from 0 to K - 1.
        test_images, test_labels: test images and labels, used only for the final accuracies.
        class_names: K names; the numbers of the classes if None.
        validation: fraction of the training images to hold out.
        name: the name of the data set in results.

    Raises:
        UserError: the arrays are invalid or do not fit together.

    >>> images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    >>> from_arrays(images, labels, images, labels).num_classes
    2
    """
    arrays = {
        "train_images": np.asarray(images), "train_labels": np.asarray(labels),
        "test_images": np.asarray(test_images), "test_labels": np.asarray(test_labels),
    }  # fmt: skip
    if class_names is not None:
        arrays["class_names"] = np.asarray(list(class_names))
    train, _, test, names = data.checked(name, arrays)
    train, held_out = data.hold_out(train, data.validation_size(validation, len(train)))
    return Dataset(name=name, train=train, validation=held_out, test=test, class_names=names)


@in_python
def train(
    model: Any,
    dataset: Dataset | str,
    config: Config | None = None,
    *,
    variables: Any = None,
    workdir: str | Path | None = None,
    callback: Callback | None = None,
    progress: bool = True,
    **settings: Any,
) -> Network:
    """Trains a robust network and prunes it to a budget, in one run.

    Args:
        model: an unmodified network: a Flax (Linen or NNX) or Equinox module, a pair (apply,
            variables) with `apply(variables, images) -> logits`, the name of a model of this
            package, or "FILE.py:NAME". Images are (N, H, W, C) float32 in [0, 1], so any
            normalisation must be part of the network. It returns a logit for each class.
        dataset: a data set of `load_data` or `from_arrays`, or a name for `load_data`.
        config: the settings; None for the defaults of the data set.
        variables: initial weights. For a Linen module: {"params": ...} and its other collections;
            missing collections are initialised. NNX and Equinox modules and pairs contain their
            weights, so None. Or a `Network` of the same model that is not pruned, for instance one
            trained with budget=1.0.
        workdir: the folder of the run. The same call again resumes the run, or returns the
            finished network. If None, nothing is kept, and an interrupted run is lost.
        callback: called with a dictionary after each epoch: "epoch", "loss", "natural", "fgsm",
            "pgd", "cost_ratio" and more. An exception that it raises ends the run. Of several
            processes, only the first calls it.
        progress: whether to show progress.
        **settings: fields of `Config` that override `config`: budget, cost, epsilon, epochs,
            defense, seed and so on.

    Returns:
        The compact network: callable, with its cost, groups, history and measured accuracies.

    Raises:
        UserError: a value is wrong; the message says which one and what to give instead.

    >>> small = train(
    ...     "resnet8", "digits", budget=0.3, epochs=1, train_images=128, progress=False
    ... )
    >>> small.cost["macs_ratio"] <= 0.3
    True
    >>> small(np.zeros((2, 8, 8, 1), np.uint8)).shape
    (2, 10)
    """
    machine.configure()
    checkpoint.quiet()
    _check_given(model, dataset, config, workdir, callback)
    name = dataset if isinstance(dataset, str) else dataset.name
    base = config or configs.suited(name)
    fields = {field.name for field in dataclasses.fields(Config)}
    for key in settings:
        if key not in fields:
            raise unknown("setting", key, sorted(fields))
    settings = {key: _plain(key, value) for key, value in settings.items()}
    chosen = dataclasses.replace(base, **settings, dataset=name)
    workdir = base.workdir if workdir is None else workdir
    if workdir is None and hosts.is_several():
        raise UserError("several processes need workdir=, a folder that all of them can read")
    if isinstance(variables, Network):
        variables = variables.variables
    if isinstance(dataset, str):
        given = None
    else:
        given, chosen = dataset, dataclasses.replace(chosen, data_dir=None)
        if isinstance(dataset.train, FileSplit):
            chosen = dataclasses.replace(chosen, image_size=dataset.image_shape[0])
    subject = model
    if isinstance(model, str):
        chosen, subject = dataclasses.replace(chosen, model=model), None
        if variables is not None:
            raise UserError(
                f"variables are for a module, not for the name {model!r}: give the module as model"
            )
    else:
        chosen = dataclasses.replace(chosen, model=_name(model))
    with tempfile.TemporaryDirectory(prefix="irp_jax-") as temporary:
        folder = Path(temporary, "run") if workdir is None else Path(workdir)
        chosen = dataclasses.replace(chosen, workdir=str(folder))
        reporter = _Reporter(callback, shown=progress)
        try:
            results = experiment.run(
                chosen, reporter, "irp_jax.train", model=subject, dataset=given,
                variables=variables,
            )  # fmt: skip
        finally:
            reporter.close()
        code = model if not isinstance(model, str) or models.is_file(model) else None
        network = loading.load(folder / "network", model=code)
    return dataclasses.replace(network, results=results)


@in_python
def describe(model: Any, image_shape: Sequence[int], classes: int = 10) -> ChannelGraph:
    """Returns the channel graph of a network: groups, layers, cost, and why some channels stay.

    Args:
        model: as for `train`.
        image_shape: (H, W, C) of one image.
        classes: number of logits, used for models of this package only.

    Raises:
        UserError: the model does not take such images, or returns no logits.

    >>> describe("resnet8", (8, 8, 1)).groups["stem"]
    16
    """
    shape = _shape(image_shape)
    if isinstance(model, str):
        return traced.named(model, 1.0, shape, classes).graph
    return traced.trace(model, shape).graph


@in_python
def measure_latency(
    model: Any,
    image_shape: Sequence[int],
    classes: int = 10,
    *,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    multiple: int | None = None,
    rounds: int = 100,
    progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> LatencyTable:
    """Measures the latency of a network's layers on this machine, at many numbers of channels.

        irp_jax.latency.save(irp_jax.measure_latency("resnet20", (32, 32, 3)), "table.json")
        irp_jax.train("resnet20", "cifar10", cost="latency", latency_table="table.json", budget=0.3)

    Args:
        model: as for `train`.
        image_shape: (H, W, C) of one image.
        classes: number of logits, used for models of this package only.
        runtime: "onnxruntime" or "litert" on the processor, or "jax" on its default device.
        threads: number of threads of onnxruntime or LiteRT, 1 if None. JAX uses its own.
        multiple: files of onnxruntime have zero channels up to multiples of this, 4 if None. The
            others run a network as it is.
        rounds: number of times that each layer is timed, in turns. The table has the medians.
        progress: called with the name of a part, steps done and number of steps.

    Returns:
        The table. Its `checks` compare predictions with whole networks that were measured.

    Raises:
        UserError: the runtime is unknown or not installed, a number is below 1, the model does not
            take such images, or a layer cannot be exported.
    """
    shape = _shape(image_shape)
    if isinstance(model, str):
        known = traced.named(model, 1.0, shape, classes)
    else:
        known = traced.trace(model, shape)
    return measure(
        known, runtime, threads=threads, multiple=multiple, rounds=rounds, progress=progress
    )


@in_python
def load(path: str | Path, *, model: Any = None) -> Network:
    """Loads a saved network, or the network of a run: see `loading.load`.

    Args:
        path: a folder that `Network.save` or `bin/publish` wrote, a run's workdir, or the text
            "hf-hub:OWNER/NAME", a network on the Hugging Face hub.
        model: the module of a network from outside this package. It is needed only if there
            is no saved function, or if it cannot be read any more.

    Raises:
        UserError: there is no network, it is damaged, its model is needed, or it cannot be
            downloaded.
    """
    checkpoint.quiet()
    if not isinstance(path, str | Path):
        raise UserError(f"a path of type {type(path).__name__}: give the folder of a network")
    return loading.load(path, model=model)


load_model = load
"""`load` under the name that RobustBench and others use."""


@in_python
def train_many(
    runs: Sequence[Config],
    *,
    attacks: Sequence[str] = (),
    images: int | None = None,
    results: str | Path | None = None,
    jobs: int = 0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Trains and attacks several networks, each in a process of its own.

        base = irp_jax.config.suited("digits")  # the defaults of a data set
        runs = [dataclasses.replace(base, seed=seed) for seed in range(3)]
        results = irp_jax.train_many(runs, attacks=["autoattack"])

    The same call again goes on where it stopped. The same call at the same time, here or on
    machines that share the folders, shares the runs.

    Args:
        runs: their settings. A run without a workdir has a folder of its own in `runs`.
        attacks: names of attacks besides PGD-10: "autoattack", "pgd-50-10" (50 steps, 10 restarts),
            or another attack of `Network.evaluate`.
        images: number of test images for `attacks`; all if None.
        results: a folder that collects the results, one JSON file a run.
        jobs: runs at a time; 0 for the number of cores on a CPU, else 1.
        progress: whether to print a line when a run begins and ends.

    Returns:
        The results of all runs, with those of every attack under "accuracy" and "attacks".

    Raises:
        UserError: a setting is wrong, or a run failed; the others are done.
    """
    for name, value in (("images", images), ("jobs", jobs or None)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for run in runs:
        if not isinstance(run, Config):
            raise UserError(f"a run of type {type(run).__name__}: give an irp_jax.Config for each")
        configs.check(run)
    named = [dataclasses.replace(run, workdir=str(configs.workdir(run))) for run in runs]
    if len({Path(str(run.workdir)).name for run in named}) < len(named):
        raise UserError(
            "two runs have the same settings, or workdirs of the same name: leave one out, or give "
            "each another name"
        )
    if not named:
        return []
    place = None if results is None else Path(results)
    if place is not None:
        files.make_folder(place)
    wanted = one_run.Wanted(one_run.attack_flags(attacks), images, place)
    claimed = place or configs.workdir(named[0]).parent
    files.make_folder(claimed)
    console = Console(quiet=not progress)
    found, failed = sweeps.train_all(named, wanted, claimed, console, jobs=jobs)
    if failed:
        raise sweeps.failed_runs(named, failed)
    return found


@in_python
def html_report(runs: Any, path: str | Path) -> tuple[str, ...]:
    """Writes the results of runs to one HTML page, which needs no network connection.

    Args:
        runs: for each, the folder of a run, a folder of results, a JSON file, or the results of a
            network, which are `Network.results`. One need not be in a list.
        path: the .html file to write. An existing file is replaced.

    Returns:
        A line for each file or run that could not be used or is incomplete. The page shows them.

    Raises:
        UserError: no results were found, the file cannot be written, or the extra `plots` is not
            installed.
    """
    with extra("plots"):
        from irp_jax.report.page import html
    return html.page(runs, path).notes


def _check_given(model: Any, dataset: Any, config: Any, workdir: Any, callback: Any) -> None:
    """Checks the types of the arguments of `train`."""
    if model is None:
        raise UserError("model=None: give a network, or the name of one, for instance 'resnet20'")
    if isinstance(model, Network):
        raise UserError("a trained network is not a model: give its module, and variables=network")
    if not isinstance(dataset, str | Dataset):
        raise UserError(
            f"a data set of type {type(dataset).__name__}: give a name, or irp_jax.from_arrays("
            f"images, labels, test_images, test_labels)"
        )
    if config is not None and not isinstance(config, Config):
        raise UserError(f"config of type {type(config).__name__}: give an irp_jax.Config")
    if workdir is not None and not isinstance(workdir, str | Path):
        raise UserError(f"workdir of type {type(workdir).__name__}: give a path")
    if callback is not None and not callable(callback):
        raise UserError(f"callback of type {type(callback).__name__}: give a function of a dict")


def _plain(key: str, value: Any) -> Any:
    """Returns a setting as `Config` takes it: NumPy scalars and texts such as "8/255" converted."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and isinstance(getattr(Config(), key), float):
        return configs.fraction(value)
    return value


def _shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    try:
        height, width, channels = (operator.index(size) for size in image_shape)
    except (TypeError, ValueError):
        raise UserError(
            f"image_shape must be (height, width, channels), got {image_shape!r}"
        ) from None
    return height, width, channels


def _name(model: Any) -> str:
    """Returns the name of a network that was given as an object."""
    if isinstance(model, tuple) and model:
        model = model[0]
    return getattr(model, "__name__", None) or type(model).__name__


class _Reporter(Terminal):
    """Shows a run unless `shown` is false, and calls the callback after each epoch."""

    def __init__(self, callback: Callback | None, shown: bool) -> None:
        super().__init__(quiet=not (shown and hosts.is_first()))
        self._callback = callback

    def epoch(self, row: dict[str, Any]) -> None:
        super().epoch(row)
        if self._callback is not None and hosts.is_first():
            self._callback(dict(row))


__all__ = [
    "Callback", "describe", "from_arrays", "html_report", "load", "load_data", "load_model",
    "measure_latency", "train", "train_many",
]  # fmt: skip
