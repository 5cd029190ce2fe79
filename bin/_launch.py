"""Finds or makes a Python environment and runs a command in it. Uses the standard library only.

The current Python is used if it has all packages that pyproject.toml asks for. Otherwise `.venv` is
made once from the hashed pins in requirements/, and made again only when those files change. The
extras for CUDA and TPU are installed if such hardware is found; `JAX_PLATFORMS=cpu` leaves them
out. pip fetches the packages from its configured index. CONTRIBUTING.md says why pip is used, and
how to set up without a network.

This file must parse on old Pythons, so that it can refuse them with a message.
"""

import glob
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "ready")
OLDEST = (3, 11)
# A Python supports an accelerator if it has any one of these distributions.
PLUGINS = {"cuda": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "tpu": ("libtpu",)}
LARGE = {"jax", "torch", *(name for names in PLUGINS.values() for name in names)}


def run(module, extras=()):
    """Replaces this process by `python -m MODULE ARGUMENTS`.

    The environment has the extra `all` of pyproject.toml, those of the hardware, and `extras`.
    """
    execute(find_python(extras), ["-m", module, *sys.argv[1:]])


def extras_of(arguments):
    """Returns the extras that the flags of a command need."""
    words = " ".join(arguments)
    logs = ",".join(re.findall(r"--log.to[= ](\S+)", words))
    needed = {name: name in logs for name in ("tensorboard", "wandb")}
    needed["litert"] = bool(re.search(r"--runtime[= ]litert|tflite", words))
    named = [word[len("--dataset=") :] for word in arguments if word.startswith("--dataset=")]
    after = range(1, len(arguments))
    named += [arguments[n] for n in after if arguments[n - 1] == "--dataset"]
    needed["folders"] = any(os.path.isdir(os.path.expanduser(name)) for name in named)
    return [name for name, is_needed in needed.items() if is_needed]


def test():
    """Runs linter, formatter, type checker and tests; with arguments, only pytest with them.

    `--all` adds the tests that are marked as slow.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `bin/test | head` ends without a traceback
    python = find_python(["test"])
    whole = sys.argv[1:] == ["--all"]
    arguments = [] if whole else sys.argv[1:]
    if not any(os.path.exists(argument.split("::")[0]) for argument in arguments):
        os.chdir(ROOT)
    if arguments:
        execute(python, ["-m", "pytest", *arguments])
    checks = [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]]
    # One process per file: its tests share compiled programs and whole runs.
    chosen = [] if whole else ["-m", "not slow"]
    checks.append(["pytest", "-n", str(min(os.cpu_count() or 1, 8)), "--dist=loadfile", *chosen])
    failed = []
    for check in checks:
        print("$ " + " ".join(check), flush=True)
        if subprocess.call([python, "-m", *check], env=environment()):
            failed.append(" ".join(check))
    if failed:
        sys.exit("bin/test: failed: " + ", ".join(failed))


def execute(python, arguments):
    # -P keeps the working directory off sys.path, so that a `random.py` there is not imported.
    os.execve(python, [python, "-P", *arguments], environment())


def environment():
    inherited = os.environ.get("PYTHONPATH")
    return dict(os.environ, PYTHONPATH=ROOT + (os.pathsep + inherited if inherited else ""))


def find_python(extras):
    """Returns the path of a Python that has the dependencies. Makes `.venv` if none has them."""
    wanted = ["all", *extras, *find_accelerators()]
    missing = []
    if sys.version_info >= OLDEST:
        missing = find_missing(wanted)
        if not missing:
            return sys.executable
    if set(wanted) <= installed():
        return PYTHON
    if sys.version_info < OLDEST:
        refuse(
            "Python {}.{} or newer is needed, but {} is {}.{}.{}: install a newer one and run it "
            "by name, as in `python3.11 {}`".format(
                *OLDEST, sys.executable, *sys.version_info[:3], sys.argv[0]
            )
        )
    if is_nearly_ready(wanted, missing):
        say(
            "{} has JAX for {}: to use it instead of a new .venv, interrupt this and run `{} -m "
            "pip install {}`".format(
                sys.executable,
                " and ".join(name for name in wanted if name in PLUGINS),
                sys.executable,
                " ".join(map(shlex.quote, missing)),
            )
        )
    try:
        with lock():
            if not set(wanted) <= installed():  # another process may have made it meanwhile
                make(wanted, missing)
    except KeyboardInterrupt:
        refuse("set-up interrupted: the same command starts it again")
    except OSError as error:
        refuse(f"cannot set up {VENV} ({error.strerror or error}): make room or make it writable")
    return PYTHON


def find_accelerators():
    """Returns the extras for this machine's accelerators, found by their device files."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    windows_gpu = os.path.exists("/dev/dxg") and shutil.which("nvidia-smi")
    if windows_gpu or glob.glob("/dev/nvidia[0-9]*"):
        return ["cuda"]
    # The pattern asks for a digit, because Intel's NPU driver makes a directory /dev/accel. Newer
    # TPUs use vfio, as other devices do. They count only if the variables of a TPU machine are set.
    tpu = glob.glob("/dev/accel[0-9]*") or (
        glob.glob("/dev/vfio/[0-9]*") and any(name.startswith("TPU_") for name in os.environ)
    )
    return ["tpu"] if tpu else []


def read_project():
    import tomllib

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return tomllib.load(file)["project"]


def find_missing(extras):
    """Returns the requirements of pyproject.toml that the running Python does not meet."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"]  # one of the requirements

    def meets(need):
        try:
            return need.specifier.contains(version(need.name), prereleases=True)
        except PackageNotFoundError:
            return False

    project = read_project()
    optional = project["optional-dependencies"]
    todo = project["dependencies"] + [text for extra in extras for text in optional[extra]]
    missing = []
    for text in todo:  # the loop appends to this list
        need = Requirement(text)
        if need.name == project["name"]:
            todo += [inner for extra in need.extras for inner in optional[extra]]
        elif not meets(need):
            missing.append(text)
    plugins = [PLUGINS[extra] for extra in extras if extra in PLUGINS]
    lacking = [names for names in plugins if not any(meets(Requirement(name)) for name in names)]
    return missing + [names[0] for names in lacking]


def is_nearly_ready(extras, missing):
    """Returns whether this Python has the accelerator's JAX and lacks small packages only."""
    lacking = {re.split(r"[^\w.-]", text)[0] for text in missing}
    return bool(PLUGINS.keys() & set(extras)) and not lacking & {*LARGE, "packaging"}


def fingerprint():
    """Returns a digest of everything that `.venv` is made from: the pins and its base Python."""
    digest = hashlib.sha256(os.path.realpath(PYTHON).encode())
    pins = sorted(glob.glob(os.path.join(glob.escape(ROOT), "requirements", "*.txt")))
    for path in [os.path.join(ROOT, "pyproject.toml"), *pins]:
        with open(path, "rb") as file:
            digest.update(os.path.basename(path).encode() + file.read())
    return digest.hexdigest()


def installed():
    """Returns the extras of `.venv`; none if it is unfinished or was made from other pins."""
    try:
        with open(STAMP) as file:
            made_from, *extras = file.read().split()
    except (OSError, ValueError):
        return set()
    whole = os.path.exists(PYTHON) and os.path.exists(os.path.join(VENV, "pyvenv.cfg"))
    return set(extras) if made_from == fingerprint() and whole else set()


@contextmanager
def lock():
    """Holds the lock on `.venv`. The system releases it if this process dies."""
    import fcntl

    # Beside the folder itself: several clones may have links to one .venv.
    with open(os.path.realpath(VENV) + ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command is setting up .venv: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # the file systems of some clusters have no locks
        yield


def make(extras, missing):
    """Makes `.venv`, or adds packages to it.

    A stamp file marks the folder as made by this file. It says "unfinished" until the end, so that
    an interrupted set-up is started again. Then it lists the extras.
    """
    from importlib.util import find_spec

    have = installed()
    lacks = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
    if os.path.lexists(VENV) and not os.path.exists(STAMP):
        refuse(
            f"{sys.executable} lacks {lacks}, and {VENV} was not made by this command: "
            "activate it if it has them, or rename it"
        )
    if not have and os.path.islink(VENV):
        refuse(f"{VENV} is a link to an environment of other pins: remove the link")
    os.makedirs(VENV, exist_ok=True)
    stamp("unfinished")
    # Not sys.executable: if a stale .venv is active, that file is deleted below.
    creator = getattr(sys, "_base_executable", sys.executable)
    if not have:
        say(f"setting up .venv once, in a minute or two: {sys.executable} lacks {lacks}")
        for entry in os.scandir(VENV):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.path != STAMP:
                os.remove(entry.path)
        # Some systems have venv without ensurepip. Then the pip of this Python is used.
        without_pip = [] if find_spec("ensurepip") else ["--without-pip"]
        call([creator, "-m", "venv", *without_pip, VENV], "make an empty environment")
    if os.path.exists(os.path.join(VENV, "bin", "pip")):
        pip = [PYTHON, "-m", "pip"]
    else:
        pip = [creator, "-m", "pip", "--python", PYTHON]
    pip += ["install", "--disable-pip-version-check", "--no-input", "--no-compile"]
    pip += [] if sys.stderr.isatty() else ["-qq"]
    pins, loose = [], []
    for extra in extras:
        path = os.path.join(ROOT, "requirements", extra + ".txt")
        if os.path.exists(path):
            pins += ["-r", path]
        else:  # PyTorch has a version but no pinned hashes: see pyproject.toml
            loose += read_project()["optional-dependencies"][extra]
    call([*pip, "--require-hashes", *pins], "install the pinned packages")
    if loose:
        call([*pip, *loose], "install " + ", ".join(loose))
    # On all cores, pip would use one; not left to imports, whose bytecode container images often
    # have Python throw away. Some packages hold files of other Pythons, which do not compile.
    compile_all = [PYTHON, "-m", "compileall", "-qq", "-j", "0", os.path.join(VENV, "lib")]
    subprocess.call(compile_all, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stamp(fingerprint(), *sorted(have.union(extras)))
    say("ready")


def stamp(*words):
    with open(STAMP + ".new", "w") as file:
        file.write("\n".join(words) + "\n")
    os.replace(STAMP + ".new", STAMP)


def call(command, what):
    """Runs a step of the set-up, with its output on standard error."""
    if subprocess.call(command, stdout=sys.stderr):
        refuse(f"could not {what}: see above; run the same command to try again")


def say(text):
    print("irp_jax: " + text, file=sys.stderr, flush=True)


def refuse(text):
    say(text)
    sys.exit(2)
