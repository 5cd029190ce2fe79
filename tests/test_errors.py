"""Tests of irp_jax.errors."""

import pytest

from irp_jax import errors
from irp_jax.errors import UserError, unknown

MODELS = ["resnet20", "resnet18", "vgg16"]


@pytest.mark.parametrize(
    ("given", "nearest"), [("resnet21", "resnet20"), ("VGG16", "vgg16"), ("vgg", "vgg16")]
)
def test_suggests_the_nearest_name(given, nearest):
    assert f"did you mean {nearest!r}?" in str(unknown("model", given, MODELS))


def test_dashes_make_no_flag_likelier():
    flags = ["--models", "--seeds"]
    assert "did you mean" not in str(unknown("flag", "--defense", flags))
    assert "did you mean '--seeds'?" in str(unknown("flag", "--seed", flags))


def test_a_truncated_name_suggests_its_completion():
    assert "did you mean 'apgd-t'?" in str(unknown("attack", "apgd", ["pgd", "apgd-ce", "apgd-t"]))


def test_suggests_nothing_where_nothing_is_near_but_lists_all():
    message = str(unknown("model", "zzzz", MODELS))
    assert "did you mean" not in message
    assert all(name in message for name in MODELS)


def test_many_choices_are_not_listed_beside_the_nearest():
    flags = [f"--flag-{number}" for number in range(30)]
    assert (
        str(unknown("flag", "--flag7", flags)) == "unknown flag '--flag7': did you mean '--flag-7'?"
    )
    assert "--flag-29)" in str(unknown("flag", "--zzzz", flags))


def test_is_one_line_and_a_value_error():
    error = UserError("two\n  lines")
    assert str(error) == "two lines"
    assert isinstance(error, ValueError)


def test_errors_of_the_python_interface_name_arguments():
    @errors.in_python
    def checked(value):
        raise UserError(f"--batch-size must be at least 1, got {value}: give --epochs=2, not a--b")

    with pytest.raises(UserError) as caught:
        checked(0)
    expected = "batch_size must be at least 1, got 0: give epochs=2, not a--b"
    assert str(caught.value) == expected
