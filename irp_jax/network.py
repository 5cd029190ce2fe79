"""A trained network: to use, to evaluate, to attack, to save and to load."""

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irp_jax import attacks, checkpoint, evaluation, files, traced
from irp_jax.data import Dataset, to_float
from irp_jax.errors import UserError
from irp_jax.graph import ChannelGraph
from irp_jax.pruning import cost, masks, sparse

FORMAT = 1
"""Of `network.json`; docs/saved_networks.md describes it."""

NEEDED = {
    "format", "model", "class_names", "image_shape", "groups", "kept", "regularity", "cost",
    "epochs", "trained", "sha256",
}  # fmt: skip
"""Keys of `network.json`."""

RECORD, ARRAYS, FUNCTION = "network.json", "arrays.npz", "function.stablehlo"


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
        """Logits (N, K), float32.

        Args:
            images: (N, H, W, C) uint8, or float in [0, 1].

        Raises:
            UserError: images of another shape.
        """
        images = jnp.asarray(images)
        if images.shape[1:] != self.image_shape or images.ndim != 4:
            raise UserError(
                f"images must be (N, {', '.join(map(str, self.image_shape))}), got shape "
                f"{images.shape}"
            )
        if images.dtype == jnp.uint8:
            images = to_float(images)
        return self._compiled(self.variables, images.astype(jnp.float32))

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

    def evaluate(
        self,
        data: Dataset | tuple[Any, Any],
        attack: attacks.AttackName = "pgd",
        *,
        epsilon: float | None = None,
        batch_size: int = 256,
        **settings: Any,
    ) -> attacks.AttackReport:
        """Natural accuracy, and accuracy under attack.

        Args:
            data: a data set, of which the test images are attacked, or images (N, H, W, C), uint8
                or float in [0, 1], and labels (N,).
            attack: pgd, autoattack and others: see `attacks.AttackSpec`.
            epsilon: radius in units of [0, 1]; that of training if None.
            batch_size: images attacked at once.
            **settings: of `attacks.AttackSpec`: norm, steps, restarts, seed, ...

        Returns:
            `natural` and `robust`, shares of the images; `accuracy` after each attack;
            `adversarial` images.

        Raises:
            UserError: as `attacks.assess`.
        """
        images, labels = (data.test.images, data.test.labels) if isinstance(data, Dataset) else data
        spec = attacks.AttackSpec(
            name=attack, epsilon=self.epsilon if epsilon is None else epsilon, **settings
        )
        return evaluation.evaluate(
            self.apply, self.variables, np.asarray(images), np.asarray(labels), spec,
            batch_size=batch_size,
        )  # fmt: skip

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

    Nothing that is stored is executed as Python. A network of a class of your own needs the class,
    or the StableHLO function that was saved with it.

    Args:
        path: a folder that `Network.save` wrote, a run's workdir, its checkpoint folder, or one
            checkpoint in it.
        log: told of damaged checkpoints that are passed over.
        model: the network's own model, for one that is none of ours; or the text "FILE.py:NAME".

    Raises:
        UserError: there is no network, none that is whole, or its model is needed.
    """
    folder = Path(path)
    if (folder / RECORD).is_file():
        return _load_saved(folder, model)
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    finished = folder / "network"
    saved = checkpoint.restore(checkpoints, None, log)
    if saved is None:
        raise UserError(f"no checkpoint in {path}: give a run's workdir, such as runs/<name>")
    if model is None and "name" not in saved.record["network"]["model"]:
        if (finished / RECORD).is_file():
            return _load_saved(finished, None)
        name = saved.record["network"]["model"].get("file", "FILE.py:NAME")
        raise UserError(
            f"{path} is of a network that is none of ours, and its run is not finished: give its "
            f"model, for instance --model={name}"
        )
    return of(saved, model)


def of(saved: checkpoint.Saved, model: Any = None) -> Network:
    """The network in a checkpoint."""
    record = saved.record["network"]
    known = _traced(record, model)
    if dict(known.graph.groups) != record["groups"]:
        raise _other_model(known.name)
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
    """The model of a record, or the one that is given for it."""
    shape, classes = tuple(record["image_shape"]), len(record["class_names"])
    spec = record["model"]
    if isinstance(model, str):
        return traced.named(model, 1.0, shape, classes)
    if model is not None:
        return traced.trace(model, shape, classes, spec=spec)
    return traced.named(spec["name"], spec["width"], shape, classes)


def _other_model(name: str) -> UserError:
    return UserError(
        f"the network was not made with this {name}: its layers differ; give the model as it was "
        f"when it was trained"
    )


def save(network: Network, folder: Path, *, function: bool | None = None) -> None:
    """See `Network.save`."""
    if folder.exists() and not (folder / RECORD).is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else: choose another folder")
    if function is None:
        function = "name" not in network.record["model"]
    arrays = {
        f"{kind}/{name}": np.asarray(array)
        for kind, group in network.variables.items()
        for name, array in group.items()
    }
    exported = _exported(network) if function else None
    files.make_folder(folder.absolute().parent)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        files.write_whole(unfinished / ARRAYS, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        if exported is not None:
            files.write_whole(unfinished / FUNCTION, lambda file: file.write(exported))
        digests = {path.name: files.sha256(path) for path in sorted(unfinished.iterdir())}
        record = {**network.record, "format": FORMAT, "sha256": digests}
        if network.history:
            record["history"] = network.history
        files.write_json(unfinished / RECORD, record)
        unfinished.chmod(0o755)
        if folder.exists():
            for name in (RECORD, ARRAYS, FUNCTION):
                (folder / name).unlink(missing_ok=True)
            for part in sorted(unfinished.iterdir(), key=lambda path: path.name == RECORD):
                part.rename(folder / part.name)
        else:
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _exported(network: Network) -> bytes | None:
    """The function (variables, images of any number) -> logits, with its gradient; None where the
    network mixes the images of a batch."""
    from jax import export

    (count,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *network.image_shape), jnp.float32)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), network.variables
    )
    try:
        function = export.export(jax.jit(network.apply), platforms=("cpu", "cuda", "tpu"))
        return bytes(function(shapes, images).serialize(vjp_order=1))
    except Exception:  # a network whose operations depend on the number of images
        return None


def _load_saved(folder: Path, model: Any) -> Network:
    record = files.read_json(folder / RECORD)
    if not isinstance(record, dict) or NEEDED - set(record):
        raise UserError(f"{folder / RECORD} is no record of a network: fetch the network anew")
    if record["format"] != FORMAT:
        raise UserError(
            f"{folder / RECORD} is of format {record['format']}, and this version reads {FORMAT}: "
            f"use a newer irp_jax"
        )
    if not isinstance(record["model"], dict) or ARRAYS not in (record["sha256"] or ()):
        raise UserError(f"{folder / RECORD} is no record of a network: fetch the network anew")
    for name, digest in record["sha256"].items():
        if not (folder / name).is_file() or files.sha256(folder / name) != digest:
            raise UserError(f"{folder / name} is damaged or missing: fetch the network anew")
    variables: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    with np.load(folder / ARRAYS, allow_pickle=False) as found:
        for key in found.files:
            kind, _, name = key.partition("/")
            variables[kind][name] = found[key]
    if model is not None or "name" in record["model"]:
        known = _traced(record, model)
        if dict(known.graph.groups) != record["groups"] or {
            kind: set(group) for kind, group in variables.items()
        } != {"params": set(known.graph.params), "batch_stats": set(known.graph.state)}:
            raise _other_model(known.name)
        apply = inference(known.network)
    else:
        apply = _imported(folder, record)
    history = record.pop("history", [])
    return Network(apply=apply, variables=variables, record=record, history=history)


def _imported(folder: Path, record: dict[str, Any]) -> Callable[[Any, jax.Array], jax.Array]:
    """The function that was saved as StableHLO."""
    name = record["model"].get("file") or record["model"].get("class", "its model")
    if FUNCTION not in record["sha256"]:
        raise UserError(f"{folder} is of a network that is none of ours: give its model, {name}")
    from jax import export

    try:
        function = export.deserialize(bytearray((folder / FUNCTION).read_bytes()))
    except Exception as error:  # of another version of JAX, beyond its window
        raise UserError(
            f"{folder / FUNCTION} is not readable by jax {jax.__version__}: give the network's "
            f"model, {name}"
        ) from error
    return lambda variables, images: function.call(variables, images)
