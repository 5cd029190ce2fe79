"""A trained network: to use, to evaluate, to attack, to save and to load."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import attacks, checkpoint, evaluation, layout, traced
from irp_jax.data import Dataset, to_float
from irp_jax.data import load as load_data
from irp_jax.errors import UserError
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import cost, masks, sparse


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A trained network, with what was pruned really gone.

    Attributes:
        apply: (variables, images (N, H, W, C) float32 in [0, 1]) -> logits (N, K), inference mode.
        variables: {"params", "batch_stats"}, each name -> array. Pruned channels are gone; pruned
            weights are zero.
        record: what is known of it, as `network.json` holds it.
        history: a row of accuracies and cost for each epoch of training, where that is known.
        results: what the run measured, where that is known: the content of results.json.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    variables: dict[str, dict[str, Any]]
    record: dict[str, Any]
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    results: dict[str, Any] | None = None

    def __call__(self, images: Any) -> jax.Array:
        """Logits (N, K), float32 unless the network computes in float64.

        Args:
            images: (N, H, W, C) uint8, or float in [0, 1]; at least one.

        Raises:
            UserError: images of another shape or dtype.
        """
        images = jnp.asarray(images)
        self._check_images(images)
        images = to_float(images) if images.dtype == jnp.uint8 else images.astype(jnp.float32)
        return self._compiled(self._on_device, images)

    def _check_images(self, images: Any) -> None:
        if images.ndim != 4 or images.shape[1:] != self.image_shape or not len(images):
            raise UserError(
                f"images must be (N, {', '.join(map(str, self.image_shape))}), got shape "
                f"{images.shape}"
            )
        if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"images must be uint8, or float in [0, 1], got {images.dtype}")

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    @functools.cached_property
    def _compiled(self) -> Callable[[Any, jax.Array], jax.Array]:
        return jax.jit(self.apply)

    @property
    def name(self) -> str:
        """What its model is called."""
        spec = self.record["model"]
        return spec.get("name") or spec.get("file") or spec["class"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each logit."""
        return tuple(self.record["class_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.record["image_shape"]
        return height, width, channels

    @property
    def epsilon(self) -> float:
        """L-inf radius that it was trained to be robust against, in units of [0, 1]."""
        return self.record["trained"]["epsilon"]

    @property
    def epoch(self) -> int:
        """Epochs of training."""
        return self.record["epochs"]

    @property
    def cost(self) -> dict[str, Any]:
        """MACs per image and parameters, left and dense, and their ratios."""
        return self.record["cost"]

    @property
    def groups(self) -> dict[str, int]:
        """Channel group, or kernel where single weights were pruned -> how many are kept."""
        return self.record["kept"]

    def check_classes(self, data: Dataset) -> None:
        """Refuses a data set whose labels mean other classes than the network's logits.

        Raises:
            UserError: its classes have other names, or stand in another order.
        """
        if data.class_names == self.class_names:
            return
        there = f"the {len(data.class_names)} classes of {data.name}"
        here = f"the {len(self.class_names)} of the network"
        pairs = enumerate(zip(data.class_names, self.class_names, strict=False))
        for label, (theirs, ours) in pairs:
            if theirs != ours:
                there, here = (
                    f"class {label} of {data.name} is {theirs!r}",
                    f"the network's {ours!r}",
                )
                break
        raise UserError(
            f"{there}, {here}: give labels that mean the classes of training, in their order, and "
            f"name them in class_names"
        )

    def evaluate(
        self,
        data: Dataset | tuple[Any, Any] | str,
        attack: attacks.AttackName = "pgd",
        *,
        epsilon: float | None = None,
        batch_size: int = 256,
        **settings: Any,
    ) -> attacks.AttackReport:
        """Natural accuracy, and accuracy under attack.

        Args:
            data: a data set or its name, of which the test images are attacked; or images
                (N, H, W, C), uint8 or float in [0, 1], and labels (N,).
            attack: pgd, autoattack and others: see `attacks.AttackSpec`.
            epsilon: radius in units of [0, 1]; that of training if None.
            batch_size: images attacked at once.
            **settings: of `attacks.AttackSpec`: norm, steps, restarts, seed, ...

        Returns:
            `natural` and `robust`, shares of the images; `accuracy` after each attack;
            `adversarial` images.

        Raises:
            UserError: images of another shape or other classes, an unknown setting, or as
                `attacks.assess`.
        """
        if isinstance(data, str):
            data = load_data(data)
        if isinstance(data, Dataset):
            self.check_classes(data)
            images, labels = data.test.images, data.test.labels
        elif isinstance(data, tuple) and len(data) == 2:
            images, labels = (np.asarray(part) for part in data)
        else:
            raise UserError(f"give a data set, or (images, labels), not {type(data).__name__}")
        self._check_images(images)
        radius = self.epsilon if epsilon is None else epsilon
        try:
            spec = attacks.AttackSpec(name=attack, epsilon=radius, **settings)
        except TypeError as error:
            raise UserError(f"a setting that no attack has: {error}") from error
        return evaluation.evaluate(
            self.apply, self.variables, images, labels, spec, batch_size=batch_size
        )

    def save(self, folder: str | Path, *, function: bool | None = None) -> None:
        """Writes the network to a folder: see docs/saved_networks.md.

        Args:
            folder: to be made; one that holds a network is replaced.
            function: whether the function is written too, as StableHLO, so that the network loads
                without the code of its model. By default it is, unless the model is one of ours.

        Raises:
            UserError: the folder cannot be written, or holds something else.
        """
        save(self, Path(folder), function=function)

    def __repr__(self) -> str:
        cost = self.cost
        return (
            f"Network({self.name}, {len(self.class_names)} classes, images {self.image_shape}, "
            f"{cost['macs'] / 1e6:.2f}M MACs ({cost['macs_ratio']:.1%}), {cost['params']:,} "
            f"parameters ({cost['params_ratio']:.1%}))"
        )


def cost_report(graph: ChannelGraph, kept: Mapping[str, int]) -> dict[str, Any]:
    """The `cost` entry of results.json."""
    left, whole = cost.total(graph, kept), cost.total(graph)
    return {
        "macs": left.macs,
        "dense_macs": whole.macs,
        "macs_ratio": left.macs / whole.macs,
        "params": left.params,
        "dense_params": whole.params,
        "params_ratio": left.params / whole.params,
    }


def inference(network: Callable) -> Callable[[Any, jax.Array], jax.Array]:
    """A network with its state fixed: (variables, images) -> logits.

    In whole float32, and so are its gradients, whatever the device (`graph.network` sees to that).
    """

    def apply(variables: Any, images: jax.Array) -> jax.Array:
        return network(variables["params"], variables["batch_stats"], images, train=False)[0]

    return apply


@functools.partial(jax.jit, static_argnums=0)
def deployed(graph: ChannelGraph, params: Any, batch_stats: Any) -> dict[str, Any]:
    """The variables of the network as it would be shipped now: masks binarised and applied.

    Args:
        graph: of the dense network.
        params: {"weights", "masks"}.
        batch_stats: name -> array.
    """
    weights = masks.apply(graph, params["weights"], masks.gates(params["masks"]))
    # One zero: a negative weight times no gate is -0, which a packed kernel does not remember, and
    # the same network has the same digest (`checkpoint.digest`).
    weights = jax.tree.map(lambda leaf: jnp.where(leaf == 0, jnp.zeros_like(leaf), leaf), weights)
    return {"params": weights, "batch_stats": batch_stats}


def network_params(graph: ChannelGraph, network: dict[str, Any]) -> dict[str, Any]:
    """{"weights", "masks"} from a checkpoint's network item, whose frozen kernels may be packed."""
    weights, frozen = sparse.unpack(graph, network["weights"])
    return {"weights": weights, "masks": frozen or network["masks"]}


# ---- loading and saving ----------------------------------------------------------------------


def load(path: str | Path, log: checkpoint.Log = print, *, model: Any = None) -> Network:
    """A saved network, or that of a run.

    Nothing that is stored is executed as Python. A network that is none of ours needs its model, or
    the StableHLO function that was saved with it.

    Args:
        path: a folder that `Network.save` wrote, a run's workdir, its checkpoint folder, or one
            checkpoint in it.
        log: told of damaged checkpoints that are passed over, and of a model that may not be the
            network's.
        model: the network's own model, for one that is none of ours; or the text "FILE.py:NAME".

    Raises:
        UserError: there is no network, none that is whole, or its model is needed.
    """
    folder = Path(path)
    if layout.is_saved(folder):
        return _load_saved(folder, model, log)
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    saved = checkpoint.restore(checkpoints, None, log)
    if saved is None:
        raise UserError(f"no checkpoint in {path}: give a run's workdir, such as runs/<name>")
    if model is None and not layout.is_ours(saved.record["network"]["model"]):
        if layout.is_saved(folder / "network"):
            return _load_saved(folder / "network", None, log)
        name = saved.record["network"]["model"].get("file", "FILE.py:NAME")
        raise UserError(
            f"{path} is a checkpoint of a network that is none of ours: give its model, for "
            f"instance --model={name}, or the workdir of a finished run"
        )
    return of(saved, model)


def of(saved: checkpoint.Saved, model: Any = None) -> Network:
    """The network in a checkpoint."""
    record = saved.record["network"]
    known = _traced(record, model)
    params = network_params(known.graph, saved.network)
    kept = record["kept"] or {
        name: int((logits > 0).sum()) for name, logits in params["masks"].items()
    }
    variables = jax.device_get(deployed(known.graph, params, saved.network["batch_stats"]))
    return Network(
        apply=inference(known.network),
        variables=variables,
        record=described(record, known.graph, kept, saved.epoch),
    )


def described(
    record: dict[str, Any], graph: ChannelGraph, kept: dict[str, int], epochs: int
) -> dict[str, Any]:
    """A network's record with what can be told once it is there."""
    return {**record, "kept": kept, "cost": cost_report(graph, kept), "epochs": epochs}


def _traced(record: dict[str, Any], model: Any) -> traced.TracedModel:
    """The model of a record, or the one that is given for it.

    Raises:
        UserError: the network was made with another.
    """
    shape, classes = tuple(record["image_shape"]), len(record["class_names"])
    spec = record["model"]
    if isinstance(model, str):
        known = traced.named(model, 1.0, shape, classes)
    elif model is not None:
        known = traced.trace(model, shape, classes, spec=spec)
    else:
        assert layout.is_ours(spec), "a stored name of a file is never run"
        known = traced.named(
            spec["name"], spec["width"], shape, classes, activation=spec.get("activation", "relu")
        )
    if dict(known.graph.groups) != record["groups"]:
        raise _other_model(known.name)
    return known


def _other_model(name: str) -> UserError:
    return UserError(
        f"the network was not made with this {name}: its layers differ; give the model as it was "
        f"when it was trained"
    )


def save(network: Network, folder: Path, *, function: bool | None = None) -> None:
    """See `Network.save`."""
    ours = layout.is_ours(network.record["model"])
    wanted = not ours if function is None else function
    exported = None
    if wanted:
        try:
            exported = _exported(network)
        except Exception as error:  # whatever JAX cannot export
            if function:
                raise UserError(
                    f"the network's function cannot be exported ({type(error).__name__}: "
                    f"{(str(error).splitlines() or [''])[0]}): leave out function=True"
                ) from error
    record = dict(network.record)
    if network.history:
        record["history"] = network.history
    layout.write(folder, record, network.variables, exported)


def _exported(network: Network) -> bytes:
    """The function (variables, images of any number) -> logits, with its gradient, as StableHLO."""
    from jax import export

    (count,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *network.image_shape), jnp.float32)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), network.variables
    )
    function = export.export(jax.jit(network.apply), platforms=("cpu", "cuda", "tpu"))
    return bytes(function(shapes, images).serialize(vjp_order=1))


def _load_saved(folder: Path, model: Any, log: checkpoint.Log) -> Network:
    record, variables, function = layout.read(folder)
    if model is not None or layout.is_ours(record["model"]):
        known = _traced(record, model)
        if not _fit(known.graph, variables):
            raise _other_model(known.name)
        if model is not None and record.get("fingerprint") != known.graph.fingerprint:
            log(
                f"{known.name} may not be the model that {folder} was made with: it is traced to "
                f"other operations (another version of JAX does that, too)"
            )
        apply = inference(known.network)
    elif function is not None:
        apply = _imported(folder, record, function, variables)
    else:
        raise UserError(
            f"{folder} is of a network that is none of ours: give its model, {_stored_name(record)}"
        )
    history = record.pop("history", [])
    return Network(apply=apply, variables=variables, record=record, history=history)


def _fit(graph: ChannelGraph, variables: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
    """Whether arrays are those of a graph's network, whole or cut."""
    arrays = {**variables["params"], **variables["batch_stats"]}
    names = set(variables["params"]), set(variables["batch_stats"])
    if names != (set(graph.params), set(graph.state)):
        return False
    if any(arrays[name].ndim != len(extents) for name, extents in graph.arrays.items()):
        return False
    sizes = graph.sizes(arrays)
    return all(
        arrays[name].shape == tuple(extent.count(sizes) for extent in extents)
        for name, extents in graph.arrays.items()
    )


def _stored_name(record: dict[str, Any]) -> str:
    return record["model"].get("file") or record["model"]["class"]


def _imported(
    folder: Path,
    record: dict[str, Any],
    stored: bytes,
    variables: Mapping[str, Mapping[str, np.ndarray]],
) -> Callable[[Any, jax.Array], jax.Array]:
    """The function that was saved as StableHLO."""
    from jax import export

    try:
        function = export.deserialize(bytearray(stored))
        (given, _), _ = jax.tree.unflatten(function.in_tree, function.in_avals)
        shapes = jax.tree.map(lambda aval: (aval.shape, aval.dtype), given)
        fits = shapes == jax.tree.map(lambda array: (array.shape, array.dtype), dict(variables))
    except Exception as error:  # of another version of JAX, beyond its window
        raise UserError(
            f"the function in {folder} is not readable by jax {jax.__version__}: give the "
            f"network's model, {_stored_name(record)}"
        ) from error
    if not fits:
        raise UserError(f"the function in {folder} is of another network: fetch it anew")
    return lambda variables, images: function.call(variables, images)
