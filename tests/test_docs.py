"""The examples of the documentation run."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "attacks.md"


def test_examples_of_the_page_on_attacks_run_with_a_shorter_autoattack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The quickest list that still has every kind of attack in it would take the suite a minute.
    text = PAGE.read_text().replace("attacks.autoattack(", "autoattack(")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 5
    names = {"autoattack": _brief}
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), names)
        assert 0 <= names["report"].robust <= 1


def _brief(logits_fn, images, labels, *, threat):
    from irp_jax import attacks

    return attacks.assess(
        logits_fn, images, labels, [attacks.Square(steps=3)], threat=threat, look_first=False
    )
