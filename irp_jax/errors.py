"""Errors that a user can act on."""

import contextlib
import difflib
import itertools
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message is one line that names the offending value and the way out; the command line prints
    it alone, without a traceback, and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Keeps the message to one line.

        Args:
            message: what was wrong and what to do instead; runs of white space become one space.
        """
        super().__init__(" ".join(message.split()))


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Turns a failed import of what an extra installs into one line that says how to install it.

    Args:
        name: the extra, of pyproject.toml.

    >>> with extra("plots"):
    ...     import matplotlib

    Raises:
        UserError: a package that is imported within is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("irp_jax"):
            raise
        raise UserError(f"{error.name} is not installed: pip install 'irp_jax[{name}]'") from error


MANY = 20
"""Options that can be read through for one name."""


def unknown(kind: str, name: str, options: Iterable[str]) -> UserError:
    """Builds the error for a name that is in no table.

    Args:
        kind: what the name should have named, e.g. ``"model"``.
        name: the name given.
        options: every name that would have worked.

    Returns:
        An error that suggests the nearest option, when one is near, and lists them all unless they
        are more than `MANY` and one is near.

    >>> print(unknown("model", "resnet21", ["resnet20", "vgg16"]))
    unknown model 'resnet21': did you mean 'resnet20'? (choices: resnet20, vgg16)
    """
    choices = list(options)
    word = name.lower().lstrip("-")  # the dashes of flags make none of them likelier
    lowered = {choice.lower().lstrip("-"): choice for choice in choices}
    near = difflib.get_close_matches(word, lowered, n=5, cutoff=0.6)
    near += [option for option in lowered if word and option.startswith(word)]
    # A name that was broken off goes on: apgd is meant to be apgd-t, not pgd. Of equally near names
    # the one that begins alike: resnet21 is meant to be resnet20.
    near.sort(
        key=lambda option: (
            not option.startswith(word),
            -_likeness(option, word),
            -_shared_start(option, word),
        )
    )
    hint = f": did you mean {lowered[near[0]]!r}?" if near else ""
    # Among many the nearest would be lost.
    listed = "" if near and len(choices) > MANY else f" (choices: {', '.join(choices)})"
    return UserError(f"unknown {kind} {name!r}{hint}{listed}")


def _likeness(option: str, word: str) -> float:
    return difflib.SequenceMatcher(None, word, option).ratio()


def _shared_start(option: str, word: str) -> int:
    pairs = zip(option, word, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
