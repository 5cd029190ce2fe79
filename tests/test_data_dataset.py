"""Tests of irp_jax.data.dataset."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from irp_jax.data.dataset import (
    Dataset,
    Split,
    hold_out,
    limited,
    stratified_indices,
    validation_size,
)
from irp_jax.errors import UserError


@hypothesis.given(st.lists(st.integers(0, 5), max_size=60), st.floats(0, 1))
def test_stratified_indices(label_list, fraction):
    labels = np.array(label_list, np.int32)
    count = round(fraction * len(labels))
    chosen = stratified_indices(labels, count)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    for label in np.unique(labels):
        share = np.mean(labels == label) * count
        assert abs((labels[chosen] == label).sum() - share) < 1
    np.testing.assert_array_equal(chosen, stratified_indices(labels, count))


def test_the_choice_is_pinned():
    # Holding out other images would silently change every reported accuracy.
    labels = np.arange(40, dtype=np.int32) % 4
    np.testing.assert_array_equal(stratified_indices(labels, 6), [8, 10, 13, 21, 27, 32])


@hypothesis.given(st.integers(1, 50), st.integers(0, 50))
def test_hold_out_parts_the_split(size, count):
    count = min(count, size)
    numbers = np.arange(size, dtype=np.uint8)
    split = Split(images=numbers.reshape(-1, 1, 1, 1), labels=numbers.astype(np.int32) % 3)
    kept, held = hold_out(split, count)
    assert (len(kept), len(held)) == (size - count, count)
    together = np.concatenate([kept.images.ravel(), held.images.ravel()])
    np.testing.assert_array_equal(np.sort(together), numbers)
    for part in (kept, held):
        np.testing.assert_array_equal(part.labels, part.images.ravel() % 3)


def test_validation_size():
    assert validation_size(0.02, 50_000) == 1_000
    assert validation_size(0.0, 7) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_validation_fraction_out_of_range(fraction):
    with pytest.raises(UserError, match=str(fraction)):
        validation_size(fraction, 100)


def test_validation_must_leave_something_to_train_on():
    with pytest.raises(UserError, match="leaves none of the 2"):
        validation_size(0.9, 2)


def test_fewer_training_images_keep_the_proportions_and_the_other_splits():
    labels = np.repeat(np.arange(3), [60, 30, 10]).astype(np.int32)
    split = Split(images=np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1), labels=labels)
    whole = Dataset(
        name="x", train=split, validation=split.take(np.arange(5)), test=split,
        class_names=("a", "b", "c"),
    )  # fmt: skip
    fewer = limited(whole, 20)
    assert np.bincount(fewer.train.labels).tolist() == [12, 6, 2]
    assert fewer.validation is whole.validation and fewer.test is whole.test
    with pytest.raises(UserError, match="has 100"):
        limited(whole, 101)
