"""The compiled program of a run, and its teacher, for the present network and defense."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from irp_jax import attacks, data
from irp_jax.config import AVERAGE
from irp_jax.data import Augmentation, FileSplit
from irp_jax.quantization import emulated
from irp_jax.training import defenses
from irp_jax.training import optimizer as optimizers
from irp_jax.training.image_source import InMemory, Resident
from irp_jax.training.progress import Progress, Setup
from irp_jax.training.step import Recipe, compile_steps
from irp_jax.training.teacher import Teacher


class Program(NamedTuple):
    """The compiled program. It is made anew when teacher, masks, rounding, defense or clipping
    change.

    Attributes:
        recipe: of its steps.
        network: that is trained: the model, or its emulation in 8 bits.
        steps: see `compile_steps`.
    """

    recipe: Recipe
    network: Callable
    steps: Callable


def compile_for(setup: Setup, progress: Progress) -> Program:
    """Returns the program for the present network, defense and clipping."""
    clipped = dataclasses.replace(setup.config, clip=progress.clip)
    optimizer = optimizers.build(
        clipped, setup.plan, setup.graph, frozen=bool(progress.keep_counts)
    )
    recipe = make_recipe(setup, progress)
    network = emulated(setup.model.network, progress.quantization)
    steps = compile_steps(recipe, network, optimizer, setup.mesh)
    return Program(recipe, network, steps)


def make_recipe(setup: Setup, progress: Progress) -> Recipe:
    """Returns the fixed settings of the steps from now on."""
    config = setup.config
    return Recipe(
        graph=setup.graph,
        cost_kind=config.cost,
        threat=attacks.linf(config.epsilon),
        defense=defenses.build(progress.defense, config),
        augmentation=_augmentation(setup),
        label_smoothing=config.label_smoothing,
        steps=setup.plan.steps,
        teacher_weight=config.teacher_weight,
        # Only after the freeze: while masks change, averaged weights do not belong to one network.
        taught_by_average=config.teacher == AVERAGE and bool(progress.keep_counts),
        epsilon_steps=setup.plan.epsilon_steps,
        ema=config.ema,
        guarded=config.guard and progress.defense.stronger is not None,
    )


def make_teacher(setup: Setup, progress: Progress, resident: Resident) -> Teacher | None:
    """Returns the teacher for the epochs from now on; None without a teacher.

    It needs all images on the devices: see `image_source.longest_segment`.
    """
    if setup.teacher is not None:
        apply, variables = setup.teacher.apply, setup.teacher.variables
    elif progress.parent is not None:
        apply, variables = setup.apply, progress.parent
    else:
        return None
    assert isinstance(resident.source, InMemory)
    return Teacher(
        apply, variables, augmentation=_augmentation(setup), key=resident.key,
        images=resident.source.images, mesh=setup.mesh, epochs=setup.plan.epochs,
        views=setup.config.teacher_views,
        first=(progress.parent is not None and setup.plan.parent_epoch) or 0,
    )  # fmt: skip


def _augmentation(setup: Setup) -> Augmentation:
    """Returns the random augmentation of training images."""
    config = setup.config
    usual = data.default_augmentation(
        config.dataset, setup.dataset.image_shape,
        in_files=isinstance(setup.dataset.train, FileSplit),
    )  # fmt: skip
    return dataclasses.replace(usual, cutout=config.cutout)
