"""Compiles pyproject.toml into pins with hashes, for every Python and platform it allows.

    pip install uv && python requirements/compile.py

Versions that are pinned already stay, as long as pyproject.toml admits them; `--upgrade` takes the
newest. uv does not read pip's configuration: where PyPI is a mirror, set UV_DEFAULT_INDEX.

all.txt is what bin/* run on, the extra `all`; each other file holds what its extra adds, at
versions that agree with all.txt. litert-converter.txt is for an environment of its own. Install the
others together:

    pip install --require-hashes -r requirements/all.txt -r requirements/test.txt
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = (
    "cuda", "tpu", "onnx", "litert", "folders", "hub", "tensorboard", "wandb", "slurm", "test",
)  # fmt: skip

CONVERTER = "litert-converter==0.5.0"
"""See `irp_jax/export/litert_converter.py`. The interface may change with each version."""

LIMITS = "backports-strenum<1.3"
"""Newer versions refuse Python 3.11 and later, and uv ignores upper bounds of Python."""


def compile_pins(*options: str | Path, source: str | None = None) -> list[str]:
    """Returns one block of text for each pinned package: its version, marker and hashes.

    Args:
        *options: options of uv.
        source: a requirement; None for the core of pyproject.toml and its extra `all`.
    """
    command = ["uv", "pip", "compile", "--universal", "--generate-hashes"]
    command += ["--no-annotate", "--no-header", "--quiet", *map(str, options)]
    command += (
        ["pyproject.toml", "--extra=all"] if source is None else ["--python-version=3.11", "-"]
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as limits:
        limits.write(LIMITS)
        limits.flush()
        command += ["--constraints", limits.name]
        pins = subprocess.check_output(command, cwd=HERE.parent, text=True, input=source)
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
    converter = HERE / "litert-converter.txt"
    if "--upgrade" in sys.argv[1:]:
        converter.unlink()
    compile_pins("--output-file", converter, source=CONVERTER)


if __name__ == "__main__":
    main()
