"""The radius grows to the full one, and adversarial images of training stay within it."""

import dataclasses
import types

import jax.numpy as jnp
import pytest
from defense_nets import (
    CONFIG,
    GRAPH,
    IMAGES,
    KEY,
    LABELS,
    NETWORK,
    THREAT,
    initial,
    make_setup,
    recipe,
)

from irp_jax.data import Augmentation
from irp_jax.training import optimizer as optimizers
from irp_jax.training import program
from irp_jax.training import step as step_module
from irp_jax.training.defenses import Choice, Trained
from irp_jax.training.defenses.fast import Fast
from irp_jax.training.plan import threat_at
from irp_jax.training.state import initial_state
from irp_jax.training.step import train_step


def test_the_radius_at_known_steps():
    radii = [float(threat_at(THREAT, step, 4).epsilon) for step in (0, 1, 3, 4, 100)]
    assert radii == pytest.approx([THREAT.epsilon * s for s in (0.25, 0.5, 1, 1, 1)])
    assert threat_at(THREAT, 0, 0) is THREAT


@pytest.mark.parametrize(
    ("method", "epochs"),
    [("lagrangian", 8), ("hinge", 8), ("width", 8), ("magnitude", 2), ("admm", 2)],
)
def test_the_radius_is_the_full_one_before_a_second_stage(method, epochs):
    config = dataclasses.replace(
        CONFIG, method=method, epochs=8, epsilon_warmup=0.5, pretraining=0.25, admm_stage=0.25
    )
    setup = make_setup(config)
    plan = setup.plan
    assert plan.epsilon_steps == 0.5 * epochs * plan.steps_per_epoch
    # The compiled step uses the radius of the plan.
    begun = types.SimpleNamespace(defense=Choice("n-fgsm", 10))
    assert program.make_recipe(setup, begun).epsilon_steps == plan.epsilon_steps


def test_the_guard_measures_at_the_radius_of_the_time(monkeypatch):
    monkeypatch.setattr(
        step_module.overfitting, "probe", lambda fn, images, labels, threat, key: threat.epsilon
    )
    setup = make_setup(CONFIG)
    state = initial_state(setup.config, setup.plan, GRAPH, initial())
    # The recipe is unique to this test, because a replaced function is compiled here.
    how = dataclasses.replace(recipe("n-fgsm"), epsilon_steps=1234)
    for step, share in ((616, 0.5), (2000, 1.0)):
        now = dataclasses.replace(state, step=jnp.int32(step))
        found = step_module.probe_state(how, NETWORK, KEY, now, IMAGES, LABELS, jnp.arange(8))
        assert float(found["probe_pgd"]) == pytest.approx(share * THREAT.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ruler(Fast):
    """A defense whose loss is the size of the FGSM perturbation."""

    name: str = "fgsm"

    def loss(self, forward, batch, perturbed):
        logits, batch_stats = forward(perturbed.adversarial)
        length = jnp.abs(perturbed.adversarial - batch.images).max()
        return length + 0.0 * logits.sum(), Trained(logits, batch_stats)


@pytest.mark.parametrize(("step", "share"), [(0, 0.1), (4, 0.5), (9, 1.0), (30, 1.0)])
def test_a_step_attacks_within_the_radius_of_its_time(step, share):
    plan = make_setup(CONFIG).plan
    base = recipe("fgsm")
    how = dataclasses.replace(
        base, defense=Ruler(), epsilon_steps=10, ema=0.0, augmentation=Augmentation()
    )
    config = dataclasses.replace(CONFIG, ema=0.0)
    state = initial_state(config, plan, base.graph, initial())
    state = dataclasses.replace(state, step=jnp.int32(step))
    optimizer = optimizers.build(config, plan, base.graph, frozen=False)
    images = jnp.full(IMAGES.shape, 128, jnp.uint8)
    _, metrics = train_step(
        how, NETWORK, optimizer, KEY, state, images, LABELS, jnp.arange(len(LABELS))
    )
    assert float(metrics["loss"]) == pytest.approx(share * THREAT.epsilon, rel=1e-4)
