"""A trained network as others use it: to evaluate and to attack."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from irp_jax import checkpoint, models
from irp_jax import config as configs
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.models import Architecture
from irp_jax.pruning import cost, masks, slim, sparse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network and where it comes from.

    Attributes:
        apply: (variables, images (N, H, W, C) float32 in [0, 1]) -> logits (N, K), inference mode.
        variables: its arrays; pruned weights are zero, channels are gone once masks are frozen.
        dense: the architecture before pruning.
        kept: mask name -> units kept.
        config: of the run that trained it.
        class_names: one per logit.
        image_shape: (H, W, C) of the images it was trained on.
        epoch: epochs of training completed.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    variables: Any
    dense: Architecture
    kept: dict[str, int]
    config: Config
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    epoch: int

    @property
    def cost(self) -> dict[str, Any]:
        """MACs and parameters, dense and left, and their ratios."""
        return cost_report(self.dense, self.kept)


def cost_report(dense: Architecture, kept: dict[str, int]) -> dict[str, Any]:
    """The `cost` entry of results.json."""
    left, whole = cost.total(dense, kept), cost.total(dense)
    return {
        "macs": left.macs,
        "dense_macs": whole.macs,
        "macs_ratio": left.macs / whole.macs,
        "params": left.params,
        "dense_params": whole.params,
        "params_ratio": left.params / whole.params,
    }


def inference(network: Callable) -> Callable[[Any, jax.Array], jax.Array]:
    """`models.forward` with its state fixed: (variables, images) -> logits.

    In whole float32 and so are its gradients, whatever the device: unless told so, GPUs and TPUs
    round the factors of a product to 10 and 7 bits, and what was measured there would not be the
    network that runs elsewhere.
    """

    def apply(variables, images):
        with jax.default_matmul_precision("float32"):
            return network(variables["params"], variables["batch_stats"], images, train=False)[0]

    return apply


@functools.partial(jax.jit, static_argnums=0)
def deployed(architecture: Architecture, params: Any, batch_stats: Any) -> dict[str, Any]:
    """The variables of the network as it would be shipped now: masks binarised and applied.

    Args:
        architecture: of the network as it is now.
        params: {"weights", "masks"}.
        batch_stats: running statistics.
    """
    weights = masks.apply(architecture, params["weights"], masks.gates(params["masks"]))
    # One zero: a negative weight times no gate is -0, which a packed kernel does not remember, and
    # the same network has the same digest (`checkpoint.digest`).
    weights = jax.tree.map(lambda leaf: jnp.where(leaf == 0, 0.0, leaf), weights)
    return {"params": weights, "batch_stats": batch_stats}


def network_params(dense: Architecture, network: dict[str, Any]) -> dict[str, Any]:
    """{"weights", "masks"} from a checkpoint's network item, whose frozen kernels may be packed."""
    weights, frozen = sparse.unpack(dense, network["weights"])
    return {"weights": weights, "masks": frozen or network["masks"]}


def load(path: str, log: checkpoint.Log) -> Network:
    """The network of a run.

    Args:
        path: the run's workdir, its checkpoint folder, or one checkpoint in it.
        log: told of damaged checkpoints that are passed over.

    Raises:
        UserError: there is no checkpoint, or none that is whole.
    """
    folder = Path(path)
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    saved = checkpoint.restore(folder, None, log)
    if saved is None:
        raise UserError(f"no checkpoint in {path}: give a run's workdir, such as runs/<name>")
    return of(saved)


def of(saved: checkpoint.Saved) -> Network:
    """The network in a checkpoint."""
    record = saved.record
    config = configs.from_json(record["config"])
    model = models.build(config.model, len(record["class_names"]), config.width)
    dense = models.describe(model, tuple(record["image_shape"]))
    now = slim.architecture(dense, record["kept"]) if config.regularity == "channel" else dense
    params = network_params(dense, saved.network)
    kept = record["kept"] or {
        name: int((logits > 0).sum()) for name, logits in params["masks"].items()
    }
    return Network(
        apply=inference(models.forward(model)),
        variables=deployed(now, params, saved.network["batch_stats"]),
        dense=dense,
        kept=kept,
        config=config,
        class_names=tuple(record["class_names"]),
        image_shape=tuple(record["image_shape"]),
        epoch=saved.epoch,
    )
