"""Finds or makes the environment, then runs the product in it. Standard library only.

The current Python is used if it has what pyproject.toml asks for. Otherwise `.venv` is made once,
from the hashed pins in requirements/, and made again only when those files change. Extras for CUDA
and TPU are taken where such hardware is found; `JAX_PLATFORMS=cpu` leaves them out.

This file must at least parse on old Pythons, which it is there to refuse.
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "ready")
OLDEST = (3, 11)
# A Python serves an accelerator if it has any one of these distributions.
PLUGINS = {"cuda": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "tpu": ("libtpu",)}


def run(module, extras=(), requires=(), of=None):
    """Replaces this process by `python -m MODULE ARGUMENTS` in an environment that has `extras`.

    Args:
        module: dotted name, importable from the repository's root.
        extras: pyproject extras with a file of pins of their own in requirements/.
        requires: extras installed by their version alone, without hashes: PyTorch, of which
            neither a page of help nor --no-torch has need.
        of: the subcommand that alone has need of `requires`; None if all have.
    """
    wanted = of is None or sys.argv[1:2] == [of]
    if not wanted or {"-h", "--help", "--no-torch"} & set(sys.argv):
        requires = ()
    python = find_python(tuple(extras), tuple(requires))
    execute(python, ["-m", module, *sys.argv[1:]])


def test():
    """Lint, format, types and tests; with arguments, pytest alone on those."""
    python = find_python(("test",), ())
    arguments = sys.argv[1:]
    if not any(os.path.exists(argument.split("::")[0]) for argument in arguments):
        os.chdir(ROOT)
    if arguments:
        execute(python, ["-m", "pytest", *arguments])
    checks = [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]]
    # File by file: what the tests of one share, compiled programs or whole runs, is made once.
    checks.append(["pytest", "-n", str(min(os.cpu_count() or 1, 8)), "--dist=loadfile"])
    failed = []
    for check in checks:
        print("$ " + " ".join(check), flush=True)
        if subprocess.call([python, "-m", *check], env=environment()):
            failed.append(" ".join(check))
    if failed:
        sys.exit("bin/test: failed: " + ", ".join(failed))


def execute(python, arguments):
    # -P keeps the user's working directory off the path: a `random.py` there is not ours to import.
    os.execve(python, [python, "-P", *arguments], environment())


def environment():
    inherited = os.environ.get("PYTHONPATH")
    return dict(os.environ, PYTHONPATH=ROOT + (os.pathsep + inherited if inherited else ""))


def find_python(extras, requires):
    """Returns the path of a Python that has the dependencies, making `.venv` if none has."""
    accelerators = () if os.environ.get("JAX_PLATFORMS") == "cpu" else find_accelerators()
    missing = []
    if sys.version_info >= OLDEST:
        missing = missing_here(extras + requires, accelerators)
        if not missing:
            return sys.executable
    wanted = extras + accelerators + requires
    if not is_ready(wanted):
        if sys.version_info < OLDEST:
            refuse(
                "Python {}.{} or newer is needed, but {} is {}.{}.{}: install a newer one and "
                "run it by name, as in `python3.11 {}`".format(
                    *OLDEST, sys.executable, *sys.version_info[:3], sys.argv[0]
                )
            )
        try:
            with lock():
                if not is_ready(wanted):  # another launcher may have made it while this one waited
                    make(extras + accelerators, requires, missing)
        except KeyboardInterrupt:
            refuse("set-up interrupted: the same command begins it again")
        except OSError as error:
            refuse(
                f"cannot set up {VENV}: {error.strerror or error}: make room or make it writable, "
                f"or use a Python that already has {', '.join(missing)}"
            )
    return PYTHON


def find_accelerators():
    """Returns the extras for this machine's hardware, by its device files: nothing is started."""
    windows_gpu = os.path.exists("/dev/dxg") and shutil.which("nvidia-smi")
    if windows_gpu or glob.glob("/dev/nvidia[0-9]*"):
        return ("cuda",)
    # Digits: Intel's NPU driver makes a directory /dev/accel. Newer TPUs sit behind vfio instead,
    # which other devices share, so those count only with the variables a TPU machine sets.
    tpu = glob.glob("/dev/accel[0-9]*") or (
        glob.glob("/dev/vfio/[0-9]*") and any(name.startswith("TPU_") for name in os.environ)
    )
    return ("tpu",) if tpu else ()


def missing_here(extras, accelerators):
    """Returns which requirements the running Python does not meet, as written in pyproject.toml."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)["project"]

    def meets(requirement):
        name, bounds = re.split(r"(?=[<>=])|$", requirement, maxsplit=1)
        try:
            found = release(version(name))
        except PackageNotFoundError:
            return False
        for operator, bound in re.findall(r"(>=|<|==)\s*([\d.]+)", bounds):
            bound = release(bound)
            if not {">=": found >= bound, "<": found < bound, "==": found == bound}[operator]:
                return False
        return True

    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    missing = [requirement for requirement in wanted if not meets(requirement)]
    return missing + [
        PLUGINS[kind][0] for kind in accelerators if not any(map(meets, PLUGINS[kind]))
    ]


def release(text):
    """Returns the numbers of a version without trailing zeros: "2.13.0+cpu" -> (2, 13)."""
    numbers = [int(part) for part in re.findall(r"^[\d.]+", text)[0].strip(".").split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def fingerprint():
    """Returns a digest of all that `.venv` is made from: the pins, and the Python under it."""
    digest = hashlib.sha256(os.path.realpath(PYTHON).encode())
    pins = sorted(glob.glob(os.path.join(glob.escape(ROOT), "requirements", "*.txt")))
    for path in [os.path.join(ROOT, "pyproject.toml"), *pins]:
        with open(path, "rb") as file:
            digest.update(os.path.basename(path).encode() + file.read())
    return digest.hexdigest()


def installed():
    """Returns the extras that a finished `.venv` of the present pins has; None if there is none."""
    try:
        with open(STAMP) as file:
            made_from, *extras = file.read().split()
    except (OSError, ValueError):
        return None
    return extras if made_from == fingerprint() and os.path.exists(PYTHON) else None


def is_ready(wanted):
    have = installed()
    return have is not None and set(wanted) <= set(have)


@contextmanager
def lock():
    """Holds the right to change `.venv`; the system drops it if this process dies."""
    import fcntl

    with open(VENV + ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command is setting up .venv: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks, on some clusters
        yield


def make(extras, requires, missing):
    """Makes `.venv`, or adds to it. From the first moment on it has a stamp, which says that it is
    ours, and at the last one what is in it, so that a set-up cut short is begun again."""
    import tomllib
    from importlib.util import find_spec

    have = installed()
    if os.path.lexists(VENV) and not os.path.exists(STAMP):
        refuse(
            f"{sys.executable} lacks {', '.join(missing)}, and {VENV} is not of this command's "
            "making: activate it if it has them, or rename it"
        )
    os.makedirs(VENV, exist_ok=True)
    stamp("unfinished")
    # If it is active, its own Python will be gone: the one it was made from will not.
    inside = os.path.realpath(sys.prefix) == os.path.realpath(VENV)
    creator = getattr(sys, "_base_executable", sys.executable) if inside else sys.executable
    start = time.monotonic()
    if have is None:
        lacks = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        say(f"setting up .venv once, in a minute or two: {sys.executable} lacks {lacks}")
        for entry in os.scandir(VENV):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.path != STAMP:
                os.remove(entry.path)
        # Some images ship venv without the pip it installs; the pip of this Python then serves.
        without_pip = [] if find_spec("ensurepip") else ["--without-pip"]
        call([creator, "-m", "venv", *without_pip, VENV], start, "an empty environment")
    if os.path.exists(os.path.join(VENV, "bin", "pip")):
        pip = [PYTHON, "-m", "pip"]
    else:
        pip = [creator, "-m", "pip", "--python", PYTHON]
    install = [*pip, "install", "--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    install += ["--no-compile"]  # half of its time, on one core: done below on all
    pins = []
    for name in ("base", *extras):
        pins += ["-r", os.path.join(ROOT, "requirements", name + ".txt")]
    added = "the packages of " + ", ".join(("base", *extras))
    what = "the pinned packages" if have is None else added
    call([*install, "--require-hashes", *pins], start, what)
    if requires:
        with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
            optional = tomllib.load(file)["project"]["optional-dependencies"]
        names = [requirement for extra in requires for requirement in optional[extra]]
        call([*install, *names], start, ", ".join(names))
    say("compiling them to bytecode")
    # Some packages hold files of other Pythons, which do not compile: no reason to stop.
    compile_all = [PYTHON, "-P", "-m", "compileall", "-q", "-j", "0", os.path.join(VENV, "lib")]
    subprocess.call(compile_all, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stamp(fingerprint(), *sorted({*(have or ()), *extras, *requires}))
    say(f"ready after {time.monotonic() - start:.0f} s")


def stamp(*words):
    with open(STAMP + ".new", "w") as file:
        file.write("\n".join(words) + "\n")
    os.replace(STAMP + ".new", STAMP)


def call(command, start, what):
    """Runs a step of the set-up, showing which package it is at; on failure shows all it said."""
    live = sys.stderr.isatty()
    if not live:
        say(what)
    lines = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout or ():
        lines.append(line)
        if live and line.startswith(("Collecting", "Installing", "  Downloading")):
            text = f"[{time.monotonic() - start:3.0f} s] {what}: {line.strip()}"
            sys.stderr.write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
    if live:
        sys.stderr.write("\r\033[K")
    if process.wait():
        sys.stderr.writelines(lines)
        refuse(f"could not install {what}: see above; run the same command to try again")


def say(text):
    print("irp_jax: " + text, file=sys.stderr, flush=True)


def refuse(text):
    say(text)
    sys.exit(2)
