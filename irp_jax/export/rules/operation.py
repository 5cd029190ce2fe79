"""One operation of the traced function, as a rule gets it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from irp_jax.export.tensors import BATCH, Tensors, Value


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """An equation of the traced function, with `BATCH` for the number of images.

    Attributes:
        name: name of the primitive.
        params: parameters of the primitive. Sizes in them may be symbolic; see `size`.
        shapes, dtypes: shapes and dtypes of the outputs.
    """

    name: str
    params: dict[str, Any]
    shapes: list[tuple[int, ...]]
    dtypes: list[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.shapes[0]

    @property
    def dtype(self) -> Any:
        """Dtype of the first output."""
        return self.dtypes[0]


def size(dimension: Any) -> int:
    """Returns a size as an integer, with `BATCH` for the number of images."""
    if isinstance(dimension, int | np.integer):
        return int(dimension)
    return int(dimension._evaluate({"n": BATCH}))  # JAX has no public function for this


def sizes(dimensions: Sequence[Any]) -> tuple[int, ...]:
    """Returns sizes as integers; see `size`."""
    return tuple(map(size, dimensions))


Rule = Callable[[Tensors, Operation, list[Value]], list[Value]]
