"""Prints one line where JAX's runtime ends a process with a stack trace.

The runtime ends a process as soon as another process of the run is lost, or has not started in
time. It writes to the standard error from C++, so Python cannot change the text. Therefore the text
passes through a small process. `python stderr.py LINE` copies its input to the standard error, with
LINE instead of the text.
"""

import os
import subprocess
import sys

ENDED = b"Terminating process because the JAX distributed service"
NOISE = (b"coordination_service",)


def shorten(line: str) -> None:
    """Starts the process. Everything written to the standard error from now on passes through it.

    Args:
        line: printed instead of the text of JAX's runtime.
    """
    reader = subprocess.Popen(
        [sys.executable, "-I", __file__, line], stdin=subprocess.PIPE, start_new_session=True
    )
    assert reader.stdin is not None
    sys.stderr.flush()
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()


def copy(line: str) -> None:
    """Copies the standard input to the standard error, up to the text of JAX's runtime."""
    ended = False
    for text in sys.stdin.buffer:
        if not ended and ENDED in text:
            ended = True
            text = line.encode() + b"\n"
        elif ended or any(word in text for word in NOISE):
            continue
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()


if __name__ == "__main__":
    copy(sys.argv[1])
