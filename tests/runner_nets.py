"""A network and a few images for the tests of the runner."""

import numpy as np
from attack_nets import dense_net, new_dense_net
from jax.tree_util import Partial

from irp_jax import attacks

NET = Partial(dense_net, new_dense_net())
N = 37  # not a multiple of any batch size in the tests
IMAGES = np.random.default_rng(0).uniform(size=(N, 8, 8, 1)).astype(np.float32)
PREDICTED = np.asarray(NET(IMAGES).argmax(-1))
# Three natural images are misclassified.
LABELS = np.where(np.arange(N) < 3, (PREDICTED + 1) % 10, PREDICTED).astype(np.int32)
THREAT = attacks.linf(0.03)
