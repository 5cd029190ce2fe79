"""Commands that end when the process that started them is killed.

Otherwise a command would keep its folder locked while another process takes over its run.
"""

import os
import threading
import time

_PARENT = "IRP_JAX_PARENT"
"""Variable with the number of the process that a command shall not outlive."""


def child_environment() -> dict[str, str]:
    """Returns the environment for a command that shall not outlive this process."""
    return os.environ | {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Ends this process within a second after the one that started it, if that one asks for it.

    A command calls this once when it begins. `child_environment` is how its parent asks.
    """
    parent = os.environ.pop(_PARENT, None)  # it does not hold for the children of this process
    if parent is None:
        return

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(0.5)
        os._exit(1)  # as a kill, from which every command can resume

    threading.Thread(target=watch, daemon=True).start()
