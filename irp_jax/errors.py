"""Errors that a user can correct."""

import contextlib
import difflib
import functools
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from tokenize import TokenError
from typing import ParamSpec, TypeVar
from zipfile import BadZipFile


class UserError(ValueError):
    """Raised when a request of the user cannot be done.

    The message is one line that names the wrong value and says what to do instead. The command line
    prints only the message, without a traceback, and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Makes an error with a message of one line.

        Args:
            message: what was wrong and what to do instead; each run of white space becomes one
                space.
        """
        super().__init__(" ".join(message.split()))


Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def in_python(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Makes the errors of a function name arguments of Python instead of flags.

    The commands and the Python interface check values with the same code, whose messages name
    flags: --batch-size=32 becomes batch_size=32.
    """

    @functools.wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            flag = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")
            error.args = (flag.sub(lambda found: found[1].replace("-", "_"), str(error)),)
            raise

    return called


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Turns a failed import within the block into one line that says how to install the package.

    Args:
        name: the extra of pyproject.toml that installs the package.

    >>> with extra("plots"):
    ...     import matplotlib

    Raises:
        UserError: a package that the block imports is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("irp_jax"):
            raise
        raise UserError(f"{error.name} is not installed: pip install 'irp_jax[{name}]'") from error


MANY = 20
"""Largest number of choices that an error lists in addition to a suggestion."""


DAMAGED_NPZ = (
    OSError, ValueError, LookupError, TypeError, EOFError, OverflowError, MemoryError, RuntimeError,
    SyntaxError, BadZipFile, zlib.error, TokenError,
)  # fmt: skip
"""What numpy and zipfile raise for an .npz file that is damaged or was made to do harm."""


def reason(error: BaseException) -> str:
    """Returns the type and the first line of an error of other code, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def unknown(kind: str, name: str, options: Iterable[str]) -> UserError:
    """Returns the error for an unknown name.

    Args:
        kind: the kind of thing that the name stands for, e.g. ``"model"``.
        name: the name given.
        options: all valid names.

    Returns:
        An error that suggests the nearest option if one is near. It lists all options, unless one
        is near and they are more than `MANY`.

    >>> print(unknown("model", "resnet21", ["resnet20", "vgg16"]))
    unknown model 'resnet21': did you mean 'resnet20'? (choices: resnet20, vgg16)
    """
    choices = list(options)
    word = name.lower().lstrip("-")  # dashes of flags must not add to the similarity
    lowered = {choice.lower().lstrip("-"): choice for choice in choices}
    near = difflib.get_close_matches(word, lowered, n=5, cutoff=0.6)
    near += [option for option in lowered if word and option.startswith(word)]
    # Names that start with the given word come first: apgd means apgd-t, not pgd. Among equally
    # near names the one with the longest common start comes first: resnet21 means resnet20.
    near.sort(
        key=lambda option: (
            not option.startswith(word),
            -_likeness(option, word),
            -_shared_start(option, word),
        )
    )
    hint = f": did you mean {lowered[near[0]]!r}?" if near else ""
    # The suggestion would be hard to see in a long list.
    listed = "" if near and len(choices) > MANY else f" (choices: {', '.join(choices)})"
    return UserError(f"unknown {kind} {name!r}{hint}{listed}")


def _likeness(option: str, word: str) -> float:
    return difflib.SequenceMatcher(None, word, option).ratio()


def _shared_start(option: str, word: str) -> int:
    pairs = zip(option, word, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
