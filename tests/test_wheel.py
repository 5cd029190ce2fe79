"""The wheel, in an environment that has only the packages of the core."""

import contextlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import irp_jax

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "results" / "zoo" / "resnet20-digits-0.16"

# Imports of all modules that the core does not install are made to fail. So the tests need no
# download.
ABSENT = """
import sys

class Absent:
    names = NAMES

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def not_of_the_core() -> set[str]:
    """Returns the installed modules that neither the core nor its dependencies contain."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, core = list(project["dependencies"]), set[str]()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in core:
            core.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):  # for another platform
                wanted += metadata.requires(name) or []
    installed = metadata.packages_distributions().items()
    others = {m for m, names in installed if not core & {canonicalize_name(n) for n in names}}
    # Flax installs orbax, but nothing in the core may need it: that is what `train` is for.
    return (others | {"orbax"}) - {"irp_jax"}


def test_the_core_is_less_than_all() -> None:
    others = not_of_the_core()
    assert {"orbax", "matplotlib", "sklearn", "tensorflow_datasets", "equinox"} <= others
    assert not {"jax", "flax", "optax", "chex", "numpy", "rich", "tyro"} & others


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling import build; build.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a new environment with the wheel, with the dependencies of the test environment."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    subprocess.run([*install, "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if "-packages" in p))
    (site / "sitecustomize.py").write_text(ABSENT.replace("NAMES", repr(not_of_the_core())))
    return folder


def run(venv: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MPLBACKEND")}
    return subprocess.run(
        [str(venv / "bin" / command[0]), *command[1:]],
        cwd=venv, env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_wheel_holds_the_package_and_the_configs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("irp_jax/**/*.py")}
    configs = {f"irp_jax/configs/{path.name}" for path in ROOT.glob("configs/*.py")}
    assets = ("page.html.jinja", "page.css", "page.js", "live.js")
    page = {f"irp_jax/report/page/{name}" for name in assets}
    rest = {name for name in names if ".dist-info/" not in name}
    pins = "irp_jax/requirements/litert-converter.txt"
    assert rest == modules | configs | page | {"irp_jax/py.typed", pins}
    assert wheel.name.startswith(f"irp_jax-{irp_jax.__version__}-")


def test_the_core_imports_attacks_and_loads_networks(venv: Path) -> None:
    code = f"""
import sys
sys.modules["fcntl"] = None  # as on Windows: importing it fails
import irp_jax, irp_jax.attacks
assert {str(venv)!r} in irp_jax.__file__
for name in irp_jax.__all__:
    getattr(irp_jax, name)
network = irp_jax.load_model({str(ZOO)!r})
print(irp_jax.__version__, network.image_shape)
"""
    ran = run(venv, "python", "-c", code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{irp_jax.__version__} (8, 8, 1)\n"


def test_the_installed_command_finds_configs_and_names_itself(venv: Path) -> None:
    ran = run(venv, "irp-jax", "train", "--config=digits", "--help")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("usage: irp-jax train ")
    assert "(default: digits)" in ran.stdout
    assert run(venv, "irp-jax", "--version").stdout == f"irp_jax {irp_jax.__version__}\n"
    unknown = run(venv, "irp-jax", "trian")
    assert unknown.returncode == 2 and "'train'" in unknown.stderr


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("data", ["train", "--dataset=digits", "--workdir=run"]),
        ("hub", ["evaluate", "--checkpoint=hf-hub:owner/name"]),
        ("plots", ["report", str(ROOT / "results" / "digits"), "--curves=x.svg"]),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command(
    venv: Path, extra: str, command: list[str]
) -> None:
    ran = run(venv, "irp-jax", *command)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert f"pip install 'irp_jax[{extra}]'" in line


def test_citation_and_changelog_are_of_this_version() -> None:
    version = re.escape(irp_jax.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^## {version}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_every_python_that_is_claimed_is_admitted() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: 3."
    minors = [int(c.removeprefix(prefix)) for c in project["classifiers"] if c.startswith(prefix)]
    assert project["requires-python"] == f">=3.{min(minors)}"
