"""Adversarial images that fail verification are not counted, and a warning reports them."""

import contextlib
import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import pytest
from runner_nets import IMAGES, LABELS, NET, THREAT, N

from irp_jax import attacks
from irp_jax.attacks import runner


class Killed(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Boast:
    """An attack that claims in its first of `steps` steps to have broken every image."""

    steps: int
    name: str = "boast"
    eot: int = 1

    def trials(self, classes):
        return 1

    def start(self, logits_fn, problem):
        count = len(problem.label)
        nothing = attacks.Attacked(problem.image, jnp.zeros(count, bool), jnp.zeros(count))
        return _Boasting(nothing)

    def step(self, logits_fn, problem, state, number):
        return _Boasting(
            state.worst._replace(is_adversarial=jnp.ones_like(state.worst.is_adversarial))
        )


class _Boasting(NamedTuple):
    worst: attacks.Attacked


@pytest.mark.parametrize("steps", [1, 3])
def test_unverified_images_are_not_counted_and_reported(steps):
    told = []
    report = attacks.evaluate(
        NET, IMAGES, LABELS, [Boast(steps)], threat=THREAT, sanity_checks=False,
        callbacks=attacks.Callbacks(warn=told.append),
    )  # fmt: skip
    assert report.robust == report.natural
    (line,) = told
    assert line.startswith(f"{steps * (N - 3)} finds of boast did not hold up")


def test_a_random_network_is_verified_only_once():
    told: list[str] = []
    steps = []
    attacks.evaluate(
        NET, IMAGES, LABELS, [Boast(50, eot=2)], threat=THREAT, sanity_checks=False,
        callbacks=attacks.Callbacks(warn=told.append, progress=lambda done, *_: steps.append(done)),
    )  # fmt: skip
    assert told == []
    assert steps[-1] < 2 * N, "a run ends with its first find"


def test_unverified_images_before_an_interruption_are_reported_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SAVE_EVERY", 0.0)
    told: list[str] = []
    allowed = 0

    def progress(*_):
        nonlocal allowed
        allowed -= 1
        if not allowed:
            raise Killed

    for allowance in (3, 5, 1000):  # killed in the first attack, in the second, or not at all
        allowed = allowance
        told.clear()
        with contextlib.suppress(Killed):
            attacks.evaluate(
                NET, IMAGES, LABELS, [Boast(3), attacks.Pgd(gradient_steps=1)], threat=THREAT,
                batch_size=8, sanity_checks=False, state_file=tmp_path / "state.npz",
                callbacks=attacks.Callbacks(warn=told.append, progress=progress),
            )  # fmt: skip
    assert [line.split()[0] for line in told] == [str(3 * (N - 3))]
