"""Saves a trained network: makes the files that `layout` writes."""

import jax
import numpy as np

from irp_jax.errors import UserError, reason
from irp_jax.inference import layout
from irp_jax.inference.network import TrainedNetwork


def packed(network: TrainedNetwork, *, function: bool | None = None) -> dict[str, bytes]:
    """Returns the files that `Network.save` writes: name -> content.

    Args:
        network: the network.
        function: see `Network.save`; so are the errors.
    """
    ours = layout.is_ours(network.record["model"])
    wanted = not ours if function is None else function
    exported = None
    if wanted:
        try:
            exported = _exported(network)
        except Exception as error:  # JAX raises many types of errors
            if function:
                raise UserError(
                    f"the network's function cannot be exported ({reason(error)}): "
                    f"leave out function=True"
                ) from error
    record = dict(network.record)
    if network.history:
        record["history"] = network.history
    return layout.packed(record, network.variables, exported)


def _exported(network: TrainedNetwork) -> bytes:
    """Returns (variables, any number of images) -> logits and its gradient as StableHLO."""
    from irp_jax.export import stablehlo
    from irp_jax.export.tracing import any_images

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), network.variables
    )
    return stablehlo.serialized(network.apply, shapes, any_images(network.image_shape))
