"""irp-jax: the entry point of all commands of the installed package."""

import importlib
import sys

from irp_jax import __version__
from irp_jax.cli import COMMANDS
from irp_jax.cli.stdout import ends_with_its_reader
from irp_jax.errors import unknown


def main() -> None:
    """Runs the command that the first argument names, with the other arguments as its flags."""
    with ends_with_its_reader():
        _main()


def _main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: irp-jax COMMAND [FLAGS]; irp-jax COMMAND --help lists its flags\n")
        print("\n".join(f"  {command:12}{does}" for command, does in COMMANDS.items()))
    elif name == "--version":
        print(f"irp_jax {__version__}")
    elif name not in COMMANDS:
        print(f"error: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    else:
        from irp_jax.cli import common  # imports JAX, which --help need not wait for

        del sys.argv[1]
        module = importlib.import_module(f"irp_jax.cli.{name}")
        common.main(getattr(module, name))


if __name__ == "__main__":
    main()
