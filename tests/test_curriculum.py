"""The radius grows to the one asked for, and what is trained on keeps to it."""

import dataclasses

import jax.numpy as jnp
import pytest
from defense_nets import CONFIG, IMAGES, KEY, LABELS, NETWORK, THREAT, initial, make_setup, recipe

from irp_jax.data import Augmentation
from irp_jax.training import phases
from irp_jax.training.curriculum import threat_at
from irp_jax.training.defenses import Trained
from irp_jax.training.defenses.fast import Fast
from irp_jax.training.step import train_step


def test_the_radius_at_known_steps():
    radii = [float(threat_at(THREAT, step, 4).epsilon) for step in (0, 1, 3, 4, 100)]
    assert radii == pytest.approx([THREAT.epsilon * s for s in (0.25, 0.5, 1, 1, 1)])
    assert threat_at(THREAT, 0, 0) is THREAT


def test_a_plan_counts_the_steps_of_the_warm_up():
    config = dataclasses.replace(CONFIG, epsilon_warmup=0.5)
    plan = make_setup(config).plan
    assert plan.warm_up == round(0.5 * plan.steps) > 0
    assert make_setup(dataclasses.replace(CONFIG, epsilon_warmup=0.0)).plan.warm_up == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ruler(Fast):
    """FGSM whose loss is how far it went."""

    name: str = "fgsm"

    def loss(self, forward, batch, perturbed):
        logits, batch_stats = forward(perturbed.adversarial)
        length = jnp.abs(perturbed.adversarial - batch.images).max()
        return length + 0.0 * logits.sum(), Trained(logits, batch_stats)


@pytest.mark.parametrize(("step", "share"), [(0, 0.1), (4, 0.5), (9, 1.0), (30, 1.0)])
def test_a_step_attacks_within_the_radius_of_its_time(step, share, quick_compile):
    plan = make_setup(CONFIG).plan
    base = recipe("fgsm")
    how = dataclasses.replace(
        base, defense=Ruler(), warm_up=10, ema=0.0, augmentation=Augmentation()
    )
    config = dataclasses.replace(CONFIG, ema=0.0)
    state = phases.initial_state(config, plan, base.architecture, initial())
    state = dataclasses.replace(state, step=jnp.int32(step))
    optimizer = phases.optimizer(config, plan, base.architecture, frozen=False)
    images = jnp.full(IMAGES.shape, 128, jnp.uint8)
    _, metrics = train_step(
        how, NETWORK, optimizer, KEY, state, images, LABELS, jnp.arange(len(LABELS))
    )
    assert float(metrics["loss"]) == pytest.approx(share * THREAT.epsilon, rel=1e-4)
