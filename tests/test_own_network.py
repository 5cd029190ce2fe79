"""Networks that users bring: what cannot be counted or pruned is refused before it is trained."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from irp_jax import models
from irp_jax.config import Config
from irp_jax.errors import UserError
from irp_jax.pruning import slim
from irp_jax.training import phases


class Own(nn.Module):
    """Somebody's network, with one thing wrong."""

    wrong: str

    @nn.compact
    def __call__(self, images, train):
        size = 2 if self.wrong == "kernel" else 3
        reads = None if self.wrong == "group" else "b"
        second = models.Conv(5, "a", "b")
        x = nn.relu(models.Norm("a")(models.Conv(5, None, "a", kernel_size=size)(images), train))
        x = nn.relu(second(x))
        if self.wrong == "sum":  # of two groups of one size
            x = x + models.Conv(5, None, "c")(images)
        if self.wrong == "twice":
            x = second(x)
        if self.wrong == "foreign":
            x = nn.BatchNorm(use_running_average=not train)(x)
        return models.Dense(3 if self.wrong == "classes" else 4, reads, None)(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("foreign", "BatchNorm_0 has parameters but is no Conv, Dense or Norm"),
        ("twice", "layer Conv_0 is used twice"),
        ("classes", r"answers with \(3,\) numbers an image, not \(4,\)"),
        ("kernel", "kernel_size must be odd, got 2"),
        ("group", "each layer must name the groups it reads and writes"),
        ("sum", "does not run with fewer channels in its groups"),
        ("nothing", None),
    ],
)
def test_a_network_that_cannot_be_counted_or_pruned_is_refused(wrong, said):
    model, image = Own(wrong), jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32)

    def look():
        architecture = models.describe(model, (8, 8, 2), classes=4)
        shapes = jax.eval_shape(
            lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
        )
        slim.check(architecture, models.forward(model), shapes, image)

    if said is None:
        look()
    else:
        with pytest.raises(UserError, match=said):
            look()


@pytest.mark.parametrize("method", ["priced", "width"])
def test_a_network_of_one_layer_has_nothing_to_prune(method):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return models.Dense(4, None, None)(images.mean((1, 2)))

    architecture = models.describe(Linear(), (8, 8, 2), classes=4)
    with pytest.raises(UserError, match="resnet20 has nothing to prune"):
        phases.plan(Config(budget="1", method=method), architecture, 1000)
