"""Compiles pyproject.toml into pins with hashes, for every Python and platform it allows.

    pip install uv && python requirements/compile.py

Versions that are pinned already stay, as long as pyproject.toml admits them; `--upgrade` takes the
newest. uv does not read pip's configuration: where PyPI is a mirror, set UV_DEFAULT_INDEX.

all.txt is what bin/* run on, the extra `all`; each other file holds what its extra adds, at
versions that agree with all.txt. Install them together:

    pip install --require-hashes -r requirements/all.txt -r requirements/test.txt
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = ("cuda", "tpu", "onnx", "folders", "hub", "tensorboard", "wandb", "slurm", "test")


def compile_pins(*options: str | Path) -> list[str]:
    """Returns one block of text for each pinned package: its version, marker and hashes."""
    command = ["uv", "pip", "compile", "pyproject.toml", "--universal", "--generate-hashes"]
    command += ["--no-annotate", "--no-header", "--quiet", "--extra=all", *map(str, options)]
    pins = subprocess.check_output(command, cwd=HERE.parent, text=True)
    return re.findall(r"^\S.*\n(?:\s+--hash=.*\n)*", pins, flags=re.MULTILINE)


def main() -> None:
    # All extras at once first: all.txt then holds versions that suit every one of them.
    everything = HERE / "everything.txt"
    if "--upgrade" not in sys.argv[1:]:  # uv keeps the versions that its output file holds
        files = [HERE / f"{name}.txt" for name in ("all", *EXTRAS)]
        everything.write_text("".join(file.read_text() for file in files if file.exists()))
    compile_pins(*[f"--extra={extra}" for extra in EXTRAS], "--output-file", everything)
    base = compile_pins("--constraints", everything)
    (HERE / "all.txt").write_text("".join(base))
    for extra in EXTRAS:
        pins = compile_pins("--constraints", everything, f"--extra={extra}")
        (HERE / f"{extra}.txt").write_text("".join(pin for pin in pins if pin not in base))
    everything.unlink()


if __name__ == "__main__":
    main()
