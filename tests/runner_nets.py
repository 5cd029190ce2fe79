"""A network and a few images for the tests of the runner."""

import numpy as np
from attack_nets import dense_net, new_dense_net
from jax.tree_util import Partial

from irp_jax import attacks

NET = Partial(dense_net, new_dense_net())
N = 37  # no multiple of any batch size here
IMAGES = np.random.default_rng(0).uniform(size=(N, 8, 8, 1)).astype(np.float32)
PREDICTED = np.asarray(NET(IMAGES).argmax(-1))
# Three images are wrong as they are.
LABELS = np.where(np.arange(N) < 3, (PREDICTED + 1) % 10, PREDICTED).astype(np.int32)
THREAT = attacks.linf(0.03)
