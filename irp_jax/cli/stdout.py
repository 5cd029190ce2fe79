"""Ends a command when nobody reads its output any more, as other tools in a pipeline end.

`bin/report | head` closes the pipe after ten lines. The next line that is written raises an error.
"""

import contextlib
import os
import select
import sys
from collections.abc import Iterator

READER_GONE = 141
"""Exit code: 128 and the number of SIGPIPE, as a shell reports a tool that this signal ends."""


@contextlib.contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Ends the process without a message if output of the block finds no reader.

    Output that cannot be written for another reason, such as a full disk, is an error of one line.
    """
    if sys.stdout is None:  # the process was started without one
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # when Python exits it would be too late to handle errors
    except OSError as error:
        gone = [number for number in (1, 2) if _has_no_reader(number)]
        nothing = os.open(os.devnull, os.O_WRONLY)
        for number in gone or [1]:
            os.dup2(nothing, number)  # Python writes what is left when it exits
        if isinstance(error, BrokenPipeError) and gone:
            sys.exit(READER_GONE)
        print(f"error: standard output: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


def _has_no_reader(number: int) -> bool:
    """Returns whether a file descriptor is a pipe or a terminal that nobody reads."""
    if not hasattr(select, "poll"):  # Windows, which reports such a pipe only when it is written
        return True
    look = select.poll()
    look.register(number, 0)
    return any(event & select.POLLERR for _, event in look.poll(0))
