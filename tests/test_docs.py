"""The documentation: examples run, flags and links exist, and figures match the results."""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
from PIL import Image

import irp_jax
from irp_jax import config
from irp_jax.cli import bench, common, describe, evaluate, export, latency, publish, report, sweep
from irp_jax.config import Config
from irp_jax.inference import layout
from irp_jax.quantization import Quantization
from irp_jax.report.card import model_card
from irp_jax.report.robustbench import Paper, robustbench
from irp_jax.training.checkpoints import network_record

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs").glob("*.md"))
RESULTS = ROOT / "results"
PAGES = [
    README, RESULTS / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]  # fmt: skip


def named(paths):
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def text_of(page):
    """Returns the text of a page without its tables of old names."""
    return re.sub("<!-- old names -->.*?<!-- /old names -->", "", page.read_text(), flags=re.S)


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def test_examples_of_the_page_on_attacks_run_with_a_shorter_autoattack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A short list of attacks, because even the fastest version of AutoAttack takes a minute.
    page = ROOT / "docs" / "attacks.md"
    blocks = [code.replace("attacks.autoattack(", "autoattack(") for code in python_blocks(page)]
    assert len(blocks) == 7
    names = {"autoattack": _brief}
    for code in blocks:
        exec(compile(code, str(page), "exec"), names)
        assert 0 <= names["report"].robust <= 1


def _brief(logits_fn, images, labels, *, threat):
    from irp_jax import attacks

    return attacks.evaluate(
        logits_fn, images, labels, [attacks.Square(steps=3)], threat=threat, sanity_checks=False
    )


def examples(page):
    """Returns all code blocks of a page. Each trains a network and states its output."""
    relative = page.relative_to(ROOT)
    return [pytest.param(b, id=f"{relative}-{n}") for n, b in enumerate(python_blocks(page))]


APART = ("attacks.md", "deploy.md")
"""Pages whose examples are not about training a network: they have tests of their own."""

EXAMPLES = [
    example for page in (README, *GUIDE) if page.name not in APART for example in examples(page)
]


def test_there_are_examples():
    assert len(EXAMPLES) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_on_networks_print_what_they_say(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "epochs=3" in code
    code = code.replace("epochs=3", "epochs=1, train_images=256, guard=False")
    with jax.numpy_dtype_promotion("standard"):  # the default of JAX
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    said = re.search(r"print\(.*\)  # (.*)", code)
    assert said is not None and capsys.readouterr().out.splitlines()[-1] == said.group(1)


@pytest.mark.slow
def test_examples_of_exported_files_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = irp_jax.load(ROOT / "results" / "zoo" / "resnet20-cifar10-0.04M")
    for name in ("onnx", "stablehlo"):
        network.export(f"model.{name}", format=name)
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save("photo.png")
    blocks = python_blocks(ROOT / "docs" / "deploy.md")
    blocks = [code for code in blocks if "litert" not in code]  # tests/test_tflite.py has that one
    assert len(blocks) == 2
    for code in blocks:
        images = np.zeros((2, 32, 32, 3), np.float32)
        exec(compile(code, "example", "exec"), {"__name__": "example", "images": images})
    assert capsys.readouterr().out.split()[0] in network.class_names


OPTIONS = {
    "train": Config,
    "evaluate": evaluate.Options,
    "sweep": sweep.Options,
    "report": report.Options,
    "describe": describe.Options,
    "export": export.Options,
    "export verify": export.VerifyOptions,
    "latency": latency.Options,
    "publish": publish.Options,
    "bench": bench.Options,
}


HOSTS = {flag[2:] for flag in common.HOSTS}


def command_in(line):
    """Returns the command of a line, with its subcommand if it has one."""
    return re.search(r"bin/(export verify|\w+)", line).group(1)


def commands(page):
    """Yields the commands of this project in a page: name and [(flag, value)].

    They are in blocks, or in backticks, where they may be broken over two lines.
    """
    text = text_of(page)
    blocks = re.sub(r"\\\n", " ", text)
    lines = [line for line in blocks.splitlines() if re.match(r"    (?:\$ )?bin/", line)]
    for line in [*lines, *re.findall(r"`(bin/[a-z][^`]*)`", text)]:
        yield command_in(line), re.findall(r"(?<=\s)--([\w-]+)(?:=(\S+))?", line.split("  # ")[0])


@pytest.mark.parametrize("page", named(PAGES))
def test_commands_have_the_flags_that_the_page_gives_them(page):
    for name, flags in commands(page):
        assert (ROOT / "bin" / name.split()[0]).exists(), name
        fields = {f.name for f in dataclasses.fields(OPTIONS[name])} if name in OPTIONS else set()
        allowed = {field.replace("_", "-") for field in fields} | {"help"}
        allowed |= {"train": {"dry-run", "list"}, "test": {"all"}}.get(name, set())
        allowed |= HOSTS if name in ("train", "evaluate") else set()
        for flag, value in flags:
            if name in ("train", "sweep") and flag == "config":
                assert (ROOT / "configs" / f"{value}.py").exists(), value
                continue
            assert flag.removeprefix("no-") in allowed, f"bin/{name} --{flag}"


@pytest.mark.parametrize("page", named(PAGES))
def test_settings_that_a_page_names_are_settings(page):
    """Checks flags that stand alone in backticks. They may belong to any command or benchmark."""
    fields = {f.name for kind in OPTIONS.values() for f in dataclasses.fields(kind)}
    known = (
        {field.replace("_", "-") for field in fields}
        | {"help", "config", "costs", "upgrade", "dry-run", "list"}
        | HOSTS
    )
    for flag in re.findall(r"`--([a-z][\w-]*)", text_of(page)):
        assert flag.removeprefix("no-") in known, f"--{flag}"


@pytest.mark.parametrize("page", named(PAGES))
def test_values_of_methods_and_defenses_exist(page):
    text = text_of(page)
    for method in re.findall(r"--method=(\w+)", text):
        assert method in config.METHODS
    for defense in re.findall(r"--defense=([a-z][\w-]*)", text):
        assert defense in config.DEFENSES
    for granularity in re.findall(r"--granularity=(\w+)", text):
        assert granularity in ("channel", "weight")


@pytest.mark.parametrize("page", named(PAGES))
def test_links_and_files_that_a_page_names_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:results|configs|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:irp_jax|tests|benchmarks)/[\w./]+\.py)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_modules_that_the_page_on_design_names_exist():
    text = (ROOT / "docs" / "design.md").read_text()
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        there = [ROOT / path, ROOT / "irp_jax" / path, *(ROOT / "irp_jax").rglob(path)]
        assert any(place.exists() for place in there), path
    for folder in re.findall(r"`(\w+)/`", text):
        assert any(place.is_dir() for place in (ROOT / "irp_jax").rglob(folder)), folder


def is_found(name, places):
    """Returns whether a dotted name is a module, or something in one, below one of the places."""
    for place in places:
        parts, found = name.split("."), None
        for count in range(1, len(parts) + 1):
            with contextlib.suppress(ImportError):
                found = importlib.import_module(".".join([place, *parts[:count]])), parts[count:]
        if found and functools.reduce(
            lambda one, part: getattr(one, part, None), found[1], found[0]
        ):
            return True
    return False


def test_names_in_docstrings_exist():
    for path in sorted((ROOT / "irp_jax").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        within = [module.rsplit(".", up)[0] for up in range(module.count(".") + 1)]
        rooms = {place.stem for place in (ROOT / "irp_jax").iterdir()}
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                continue
            local = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
            for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", ast.get_docstring(node) or ""):
                first, last = name.split(".")[0], name.split(".")[-1]
                if first in rooms - local and last not in ("py", "json", "jsonl"):
                    assert is_found(name, within), f"{path.name}: {name}"


def recorded_commands():
    """Yields the commands in all results, also those of evaluations."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.rglob("*.json"))]
    while found:
        one = found.pop()
        if isinstance(one, dict):
            if isinstance(command := one.get("command"), str):
                yield command
            found += one.values()
        elif isinstance(one, list):
            found += one


def test_flags_of_recorded_commands_are_of_today_or_in_the_table_of_old_ones():
    tables = [
        re.search("<!-- old names -->\n(.*?)<!-- /old names -->", page.read_text(), re.S).group(1)
        for page in (RESULTS / "README.md", ROOT / "docs" / "results.md")
    ]
    assert tables[0] == tables[1]
    today = {}
    for old, new in re.findall(r"^\| (`--.*) \| (`--.*) \|$", tables[0], re.M):
        names = [re.findall(r"`--([^`]+)`", cell) for cell in (old, new)]
        place = "train" if "`bin/train`" in old else "evaluate" if "`bin/evaluate`" in old else ""
        today |= {(place, a): b for a, b in zip(*names, strict=True)}
    used = set()
    for command in recorded_commands():
        if not command.startswith("bin/"):
            continue
        name = command_in(command)
        fields = {f.name.replace("_", "-") for f in dataclasses.fields(OPTIONS[name])} | {"config"}
        for given in re.findall(r"(?<=\s)--([\w-]+(?:=\S+)?)", command):
            for old in ((name, given), ("", given), ("", given.partition("=")[0])):
                if old in today:
                    used.add(old)
                    given = today[old]
            flag, _, value = given.partition("=")
            assert flag.removeprefix("no-") in fields, command
            if name == "train" and flag in ("method", "defense") and value != "METHOD":
                assert value in {"method": config.METHODS, "defense": config.DEFENSES}[flag]
    assert len(used) >= 6
    assert {new.partition("=")[0] for new in today.values()} <= {
        f.name.replace("_", "-") for kind in OPTIONS.values() for f in dataclasses.fields(kind)
    }


RUN_OF = {
    "resnet20-cifar10-0.04M": "tables/resnet20-cifar10-0.04M-params-seed0-d74a5d.json",
    "resnet20-cifar10-0.16": "cifar10/resnet20-0.16-seed0-8epochs.json",
    "resnet20-cifar10-0.16M": "tables/resnet20-cifar10-0.16M-params-seed0-d39775.json",
    "resnet20-digits-0.16": "quickstart/resnet20-digits-0.16-seed0.json",
}
"""Network in results/zoo -> results of its run."""


@pytest.mark.parametrize("name", sorted(path.name for path in (RESULTS / "zoo").iterdir()))
def test_a_model_card_is_what_publish_writes_of_the_results(name):
    folder = RESULTS / "zoo" / name
    found = json.loads((RESULTS / RUN_OF[name]).read_text())
    record = json.loads((folder / "config.json").read_text())
    for key in ("cost", "epochs", "keep_counts", "network_sha256"):
        assert found[key] == record[key]
    size = (folder / "model.safetensors").stat().st_size
    card = model_card(found, folder.relative_to(ROOT), size, record["class_names"])
    assert (folder / "README.md").read_text() == card
    listed = json.loads((folder / "robustbench.json").read_text())
    assert listed == robustbench(found, Paper(title=name))


def test_the_page_on_saved_networks_lists_the_format_and_all_keys():
    page = (ROOT / "docs" / "saved_networks.md").read_text()
    assert f"| `format` | {layout.FORMAT};" in page
    rows = re.findall(r"^\| (`[^|]*`) \| (.*) \|$", page.partition("`config.json` holds")[2], re.M)
    listed = {key: what for keys, what in rows for key in re.findall(r"`(\w+)`", keys)}

    example = json.loads((RESULTS / "zoo" / "resnet20-digits-0.16" / "config.json").read_text())
    required = {}
    while lacking := re.fullmatch(r"it has no (\w+)", layout.fault_in(required) or ""):
        required[lacking.group(1)] = example[lacking.group(1)]
    assert layout.fault_in(required) is None
    written = network_record(MagicMock(), {}, Quantization(()))
    assert set(listed) == {
        *required, *written, *written["trained"], "history", "function_sha256",
    }  # fmt: skip
    optional = {key for key, what in listed.items() if what.startswith("optional")}
    assert optional == set(listed) - set(required) - layout.TRAINED
    for key in example["model"]:
        assert f'"{key}"' in listed["model"]
        assert not layout.is_ours({k: v for k, v in example["model"].items() if k != key})


def test_readme_is_short_and_has_the_two_commands():
    text = README.read_text()
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900
    assert "\n    bin/train --model=resnet20 --budget=0.16 --dataset=digits\n" in text
    assert "\n    bin/test\n" in text


def recorded(budget, epochs, narrow):
    """Returns the results of one row of README's table."""
    found = []
    for folder in ("tables", "cifar10", "comparison"):
        for path in sorted((ROOT / "results" / folder).glob("*.json")):
            one = json.loads(path.read_text())
            settings = one.get("config", {})
            same = (one["model"], settings.get("budget"), one["epochs"]) == (
                "resnet20", budget, epochs,
            )  # fmt: skip
            if same and one["method"] == ("width" if narrow else "lagrangian"):
                found.append(one)
    return found


def test_figures_of_readme_are_those_on_record():
    rows = re.findall(r"^\| (`irp_jax`|uniformly narrow) \| (.*) \|$", README.read_text(), re.M)
    assert len(rows) == 6
    for network, row in rows:
        budget, epochs, seeds, natural, pgd, autoattack = (c.strip() for c in row.split("|"))
        runs = recorded(budget, int(epochs), network == "uniformly narrow")
        assert len(runs) == int(seeds) == len({run["seed"] for run in runs})
        for cell, name in ((natural, "natural"), (pgd, "pgd"), (autoattack, "autoattack")):
            if cell:
                assert cell == f"{100 * mean(run['accuracy'][name] for run in runs):.1f}"
            else:
                assert not any(name in run["accuracy"] for run in runs)


def test_summary_of_readme_is_that_on_record():
    path = ROOT / "results" / "quickstart" / "resnet20-digits-0.16-seed0.json"
    one = json.loads(path.read_text())
    accuracy, cost = one["accuracy"], one["cost"]
    text = re.sub(r"  +", " ", README.read_text())
    for line in (
        f"natural {accuracy['natural']:.2%}",
        f"PGD-10, linf 0.1 {accuracy['pgd']:.2%}",
        f"MACs {cost['macs'] / 1e6:.2f}M ({cost['macs_ratio']:.2%})",
        f"params {cost['params']:,} ({cost['params_ratio']:.2%})",
    ):
        assert f" {line}\n" in text, line


def test_everything_that_was_measured_is_in_the_list_of_it():
    page = text_of(RESULTS / "README.md")
    cells = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", page.partition("\n## ")[0], re.M)
    listed = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    there = [path.name for path in (ROOT / "results").iterdir() if path.name != "README.md"]
    assert sorted(listed) == sorted(there)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "api" / "attacks" / "index.html").read_text()
    assert "sanity_checks" in page  # a signature, which shows that pages are not empty
