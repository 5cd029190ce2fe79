"""The examples of the documentation run."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "attacks.md"
pytestmark = pytest.mark.usefixtures("quick_compile")


def test_examples_of_the_page_on_attacks_run_with_a_shorter_autoattack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The quickest list that still has every kind of attack in it would take the suite a minute.
    text = PAGE.read_text().replace("attacks.autoattack(", "autoattack(")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 7
    names = {"autoattack": _brief}
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), names)
        assert 0 <= names["report"].robust <= 1


def examples(page):
    """The blocks that say what they print."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    return [pytest.param(b, id=f"{page}-{n}") for n, b in enumerate(blocks) if ")  # " in b]


EXAMPLES = [*examples("README.md"), *examples("docs/own_network.md")]


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_on_networks_print_what_they_say(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "epochs=3" in code
    code = code.replace("epochs=3", "epochs=1, train_images=256, guard=False")
    with jax.numpy_dtype_promotion("standard"):  # as readers have it
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    said = re.search(r"print\(.*\)  # (.*)", code)
    assert said is not None and capsys.readouterr().out.splitlines()[-1] == said.group(1)


def _brief(logits_fn, images, labels, *, threat):
    from irp_jax import attacks

    return attacks.evaluate(
        logits_fn, images, labels, [attacks.Square(steps=3)], threat=threat, sanity_checks=False
    )


def test_everything_that_was_measured_is_in_the_list_of_it():
    page = (ROOT / "results" / "README.md").read_text()
    named = re.findall(r"`([a-z0-9_]+(?:\.json)?)`", page)
    there = [path.name for path in (ROOT / "results").iterdir() if path.name != "README.md"]
    assert sorted(named) == sorted(there)
