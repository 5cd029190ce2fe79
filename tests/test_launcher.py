import ast
import hashlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PINS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Returns the launcher module, with an empty project in a temporary folder."""
    spec = importlib.util.spec_from_file_location("_launch", ROOT / "bin" / "_launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "requirements").mkdir()
    for name in ("all", "test"):
        (tmp_path / "requirements" / f"{name}.txt").write_text("")
    (tmp_path / "pyproject.toml").write_text(project("nosuchpackage>=1"))
    for name in ("ROOT", "VENV", "PYTHON", "STAMP"):
        path = Path(getattr(module, name)).relative_to(ROOT)
        monkeypatch.setattr(module, name, str(tmp_path / path))
    monkeypatch.setattr(module, "find_accelerators", lambda: [])
    return module


def project(*requirements: str) -> str:
    return f"""[project]
name = "irp_jax"
dependencies = {list(requirements)}
[project.optional-dependencies]
all = ["irp_jax[plots]"]
plots = ["numpy"]
test = ["pytest"]
cuda = []
bench = ["torch==2.13.0"]
"""


def fake_call(command: list[str], what: str) -> None:
    """Replaces venv and pip: makes the folder and the Python, installs nothing."""
    if "venv" in command:
        (Path(command[-1]) / "bin").mkdir()
        (Path(command[-1]) / "bin" / "python").symlink_to(sys.executable)
        (Path(command[-1]) / "pyvenv.cfg").touch()


def test_new_pins_are_noticed_in_a_folder_with_brackets_in_its_name(
    launch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "irp[1]"
    (moved / "requirements").mkdir(parents=True)
    shutil.copy(tmp_path / "pyproject.toml", moved)
    monkeypatch.setattr(launch, "ROOT", str(moved))
    before = launch.fingerprint()
    (moved / "requirements" / "base.txt").write_text("new==1")
    assert launch.fingerprint() != before


def test_the_launcher_parses_on_pythons_it_refuses() -> None:
    ast.parse((ROOT / "bin" / "_launch.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("name", ["train", "evaluate", "bench", "test"])
def test_commands_are_thin_and_executable(name: str) -> None:
    path = ROOT / "bin" / name
    assert path.stat().st_mode & 0o111 == 0o111
    assert len(path.read_text().splitlines()) <= 8


def test_pytorch_is_installed_for_a_benchmark_alone(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(launch, "run", lambda module, extras: asked.append(extras))
    monkeypatch.setitem(sys.modules, "_launch", launch)
    for arguments in (["train"], ["train", "--help"], ["train", "--no-torch"], ["trian"], []):
        monkeypatch.setattr(sys, "argv", ["bin/bench", *arguments])
        runpy.run_path(str(ROOT / "bin" / "bench"))
    assert asked == [["bench"], [], [], [], []]


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("pytest", True),
        ("pytest>=1", True),
        ("pytest>=1,<999", True),
        ("importlib-resources>=1", True),
        ("pytest>=999", False),
        ("pytest>=1,<2", False),
        ("nosuchpackage", False),
        ("irp_jax[plots]", True),
    ],
)
def test_what_this_python_lacks(launch: ModuleType, requirement: str, met: bool) -> None:
    Path(launch.ROOT, "pyproject.toml").write_text(project(requirement))
    assert launch.find_missing(["all"]) == ([] if met else [requirement])


def test_an_extra_that_this_python_lacks_is_noticed(launch: ModuleType) -> None:
    text = project("pytest").replace('plots = ["numpy"]', 'plots = ["nosuchpackage"]')
    Path(launch.ROOT, "pyproject.toml").write_text(text)
    assert launch.find_missing(["all"]) == ["nosuchpackage"]


def test_an_accelerator_needs_its_plugin(launch: ModuleType) -> None:
    Path(launch.ROOT, "pyproject.toml").write_text(project("pytest"))
    launch.PLUGINS["cuda"] = ("nosuchplugin", "nosuchplugin2")
    assert launch.find_missing(["all", "cuda"]) == ["nosuchplugin"]
    launch.PLUGINS["cuda"] = ("nosuchplugin", "pytest")
    assert launch.find_missing(["all", "cuda"]) == []


def test_a_python_that_has_everything_is_used(launch: ModuleType) -> None:
    Path(launch.ROOT, "pyproject.toml").write_text(project("pytest"))
    assert launch.find_python([]) == sys.executable
    assert not Path(launch.VENV).exists()


def test_venv_is_made_once_and_again_when_the_pins_change(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(command: list[str], what: str) -> None:
        made.append(what)
        fake_call(command, what)

    monkeypatch.setattr(launch, "call", counted)
    for _ in range(2):
        assert launch.find_python([]) == launch.PYTHON
    assert len(made) == 2  # an empty environment, then its packages
    Path(launch.ROOT, "requirements", "all.txt").write_text("# other\n")
    launch.find_python([])
    assert len(made) == 4
    launch.find_python(["test"])  # only adds packages
    assert len(made) == 5
    launch.find_python([])
    assert len(made) == 5
    launch.find_python(["bench"])  # this extra has no pins
    assert len(made) == 7 and "torch==2.13.0" in made[-1]


@pytest.mark.parametrize(("plugin", "told"), [("pytest", True), ("nosuchplugin", False)])
def test_a_python_with_the_accelerator_s_jax_is_told_what_it_lacks(
    launch: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plugin: str,
    told: bool,
) -> None:
    Path(launch.ROOT, "pyproject.toml").write_text(project("jax", "nosuchpackage>=1"))
    monkeypatch.setattr(launch, "find_accelerators", lambda: ["cuda"])
    monkeypatch.setattr(launch, "call", fake_call)
    monkeypatch.setitem(launch.PLUGINS, "cuda", (plugin,))
    monkeypatch.setattr(launch, "LARGE", {"jax", plugin})
    assert launch.find_python([]) == launch.PYTHON
    lines = capsys.readouterr().err.splitlines()
    assert any("-m pip install 'nosuchpackage>=1'" in line for line in lines) == told


def test_an_environment_behind_a_link_is_not_emptied(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "call", fake_call)
    shared = tmp_path / "shared"
    (shared / "lib").mkdir(parents=True)
    (shared / "ready").write_text("of other pins\n")
    Path(launch.VENV).symlink_to(shared)
    with pytest.raises(SystemExit):
        launch.find_python([])
    assert sorted(path.name for path in shared.iterdir()) == ["lib", "ready"]
    assert (shared / "ready").read_text() == "of other pins\n"


def test_a_set_up_cut_short_is_begun_again(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], *rest: Any) -> None:
        if "pip" in command:
            raise KeyboardInterrupt
        fake_call(command, *rest)

    monkeypatch.setattr(launch, "call", interrupted)
    with pytest.raises(SystemExit):
        launch.find_python([])
    assert launch.installed() == set()
    leftover = Path(launch.VENV, "leftover")
    leftover.write_text("half an environment")
    monkeypatch.setattr(launch, "call", fake_call)
    launch.find_python([])
    assert launch.installed() == {"all"}
    assert not leftover.exists()


def test_an_environment_of_the_user_s_own_is_left_alone(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "call", fake_call)
    treasure = Path(launch.VENV, "treasure")
    treasure.parent.mkdir()
    treasure.write_text("weeks of work")
    with pytest.raises(SystemExit) as stop:
        launch.find_python([])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "lacks nosuchpackage>=1" in error and "or rename it" in error
    assert [path.name for path in treasure.parent.iterdir()] == ["treasure"]


def test_a_stale_environment_that_is_active_is_made_anew_by_the_python_under_it(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    creators = []

    def noted(command: list[str], *rest: Any) -> None:
        creators.append(command[0])
        fake_call(command, *rest)

    monkeypatch.setattr(launch, "call", noted)
    Path(launch.VENV).mkdir()
    Path(launch.STAMP).write_text("of other pins\n")
    monkeypatch.setattr(sys, "prefix", launch.VENV)
    monkeypatch.setattr(sys, "_base_executable", "/usr/bin/underneath")
    launch.find_python([])
    assert creators[0] == "/usr/bin/underneath"


def test_an_old_python_gets_one_line(
    launch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit) as stop:
        launch.find_python([])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "3.11" in error and "3.9.2" in error
    # An existing environment has its own Python and is used.
    monkeypatch.setattr(launch, "installed", lambda: {"all"})
    assert launch.find_python([]) == launch.PYTHON


def test_a_real_set_up_by_two_commands_at_once(tmp_path: Path) -> None:
    """A clone with one dependency, a wheel made here, is set up without a network."""
    clone = tmp_path / "a clone"
    shutil.copytree(ROOT / "bin", clone / "bin", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "requirements").mkdir()
    (clone / "irp_jax" / "cli").mkdir(parents=True)
    for package in ("irp_jax", "irp_jax/cli"):
        (clone / package / "__init__.py").write_text("")
    (clone / "irp_jax" / "cli" / "train.py").write_text(
        "import os, sys, tinydependency\nprint(sys.argv[1:], os.getcwd(), sys.prefix)\n"
    )
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tinydependency-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinydependency.py", "")
        folder = "tinydependency-1.5.dist-info/"
        archive.writestr(
            folder + "METADATA", "Metadata-Version: 2.1\nName: tinydependency\nVersion: 1.5\n"
        )
        archive.writestr(folder + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(folder + "RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (clone / "pyproject.toml").write_text(project("tinydependency>=1"))
    pins = clone / "requirements" / "all.txt"
    pins.write_text(f"tinydependency==1.5 --hash=sha256:{digest}\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tinydependency.py").write_text("raise Exception('not the one we asked for')")
    command = [sys.executable, str(clone / "bin" / "train"), "--workdir=runs/a b"]

    def train() -> subprocess.CompletedProcess[str]:
        # As CONTRIBUTING.md describes for a machine without a network.
        offline = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
        offline.pop("PYTHONPATH", None)
        return subprocess.run(
            command, cwd=elsewhere, env=offline | {"JAX_PLATFORMS": "cpu"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(train) for _ in range(2)]
    runs = [future.result() for future in both] + [train()]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert run.stdout == f"['--workdir=runs/a b'] {elsewhere} {clone / '.venv'}\n"
    assert sum("irp_jax: ready" in run.stderr for run in runs[:2]) == 1
    assert runs[2].stderr == ""

    pins.write_text(f"tinydependency==1.5 --hash=sha256:{'0' * 64}\n")
    refused = train()
    assert refused.returncode == 2
    assert "hash" in refused.stderr.lower()


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.stem)
def test_pins_are_hashed_and_name_no_address(path: Path) -> None:
    pins = re.findall(r"^\S.*\n(?:\s+--hash=.*\n)*", path.read_text(), flags=re.MULTILINE)
    assert "".join(pins) == path.read_text()
    for pin in pins:
        assert re.match(r"[\w.-]+==[\w.]+ ", pin)
        assert pin.count("--hash=sha256:") >= 1
    assert "/" not in path.read_text()


def test_pins_cover_all_requirements_and_leave_large_packages_out() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def pinned(*files: str) -> set[str]:
        texts = [(ROOT / "requirements" / f"{file}.txt").read_text() for file in files]
        return set(re.findall(r"^([\w.-]+)==", "".join(texts), flags=re.MULTILINE))

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}

    optional = wanted["optional-dependencies"]
    assert names(wanted["dependencies"]) <= pinned("all")
    files = {"train": "all", "data": "all", "plots": "all", "docs": "test"}
    for extra in optional.keys() - {"bench"}:
        asked = names(optional[extra]) - {wanted["name"]}
        assert asked <= pinned("all", files.get(extra, extra)), extra
    assert not {"torch", "tensorflow"} & pinned("all", "test", "cuda", "tpu")
    assert not any(name.startswith("nvidia-") for name in pinned("all", "test"))


def test_the_guide_names_files_that_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:irp_jax|tests|\.\w+)/[^`]*\.\w+)`", guide)
    assert len(named) > 10
    for name in named:
        assert "NAME" in name or (ROOT / name).is_file(), name
