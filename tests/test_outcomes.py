"""The images that separate two networks are found, counted, and shown on the page."""

import json
import zipfile

import numpy as np
import pytest
from outcome_files import ATTACK, COUNT, two_runs

from irp_jax.data.npz import REQUIRED, load_npz
from irp_jax.errors import UserError
from irp_jax.report.collect import collect
from irp_jax.report.outcomes import separating
from irp_jax.report.page import html as pages


@pytest.fixture
def files(tmp_path):
    """Returns two files of outcomes in the folders of two runs, and their arrays."""
    return two_runs(tmp_path)


def test_counts_and_images(files):
    (first, ours), (second, theirs) = files
    found = separating(first, second, few=COUNT)
    assert found.attack == ATTACK
    for at, arrays in enumerate((ours, theirs)):
        assert [*found.holds[at]] == [how == "" for how in arrays["broken_by"]]
        assert [*found.natural[at]] == [how != "natural" for how in arrays["broken_by"]]
    holding = ((found.only_first, ours, theirs), (found.only_second, theirs, ours))
    for number, (shown, holds, falls) in enumerate(holding):
        expected = {n for n in range(COUNT) if not holds["broken_by"][n] and falls["broken_by"][n]}
        assert {one.place for one in shown} == expected and len(shown) == len(expected) > 3
        without = [falls["broken_by"][one.place] == "natural" for one in shown]
        assert without == sorted(without) and any(without)
        for one in shown:
            label, said = (f"class {falls[key][one.place]}" for key in ("labels", "predictions"))
            before = said if falls["broken_by"][one.place] == "natural" else label
            right, wrong = one.predictions if number == 0 else one.predictions[::-1]
            assert one.label == label and right == (label, label) and wrong == (before, said)
            np.testing.assert_array_equal(one.natural, falls["natural"][one.place] / 255)
            np.testing.assert_array_equal(one.adversarial, falls["images"][one.place])
    assert len(separating(first, second, few=2).only_first) == 2


def test_the_page_shows_them(files, tmp_path):
    (first, ours), (second, theirs) = files
    path = tmp_path / "page.html"
    found = pages.page([first.parent, second.parent], path)
    assert not found.notes
    text = path.read_text()
    for name, one, other in (("both", True, True), ("only run1", True, False),
                             ("only run2", False, True), ("neither", False, False)):  # fmt: skip
        pairs = list(zip(ours["broken_by"], theirs["broken_by"], strict=True))
        robust = sum((a == "") is one and (b == "") is other for a, b in pairs)
        natural = sum((a != "natural") is one and (b != "natural") is other for a, b in pairs)
        cells = f'<td class="n">{natural}</td><td class="n">{robust}</td>'
        assert f'<th scope="row">{name}</th>{cells}' in text
    assert text.count("Only run1 is right") == text.count("Only run2 is right") == 1


def test_a_file_belongs_to_its_network_wherever_it_is(files, tmp_path):
    (first, _), (second, _) = files
    elsewhere = first.rename(tmp_path / "elsewhere.npz")
    found = collect([first.parent, second.parent, elsewhere])
    assert [len(run.examples) for run in found.runs] == [1, 1]
    assert [pair[:2] for pair in found.separations] == [("run1", "run2")] and not found.notes
    found = collect([first.parent, elsewhere])
    assert not found.separations and not found.notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attack": np.array(json.dumps(ATTACK | {"epsilon": 0.2}))}, "epsilon 0.1 and 0.2"),
        ({"natural": np.zeros((COUNT, 4, 4, 3), np.uint8)}, "different images"),
        ({"attack": None}, "does not record its attack"),
        ({"labels": np.zeros(3, int)}, "different lengths"),
        ({"attack": np.array('{"name": "pgd"}')}, "lacks epsilon, images"),
        ({"attack": np.array("[")}, "cannot be read"),
        ({"images": None}, "was not written by"),
        ({"images": np.zeros((COUNT, 4))}, r"shape \("),
        ({"images": np.zeros((COUNT, 4, 4, 2))}, r"shape \("),
        ({"images": np.full((COUNT, 4, 4, 3), np.nan)}, "no numbers"),
        ({"images": np.array(["a"] * COUNT)}, "cannot be read"),
        ({"images": np.zeros((COUNT, 5, 4, 3))}, "different shapes"),
        ({"labels": np.full(COUNT, -1)}, "not as expected"),
        ({"broken_by": np.zeros(COUNT, int)}, "not as expected"),
        ({"attack": np.array(json.dumps(ATTACK | {"epsilon": "x"}))}, "wrong type"),
        ({"attack": np.array("[" * 10**5)}, "cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_named(files, change, said):
    (first, _), (second, arrays) = files
    np.savez(second, **{k: v for k, v in (arrays | change).items() if v is not None})
    with pytest.raises(UserError, match=said):
        separating(first, second)
    found = collect([first.parent, second.parent])
    assert len(found.runs) == 2 and not found.separations
    assert len(found.notes) == (0 if change.get("images", 0) is None else 1)


def test_a_damaged_file_is_named(files):
    (first, _), (second, _) = files
    whole = second.read_bytes()
    for length in (0, 10, len(whole) // 2):
        second.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read"):
            separating(first, second)
        assert len(collect([first.parent, second.parent]).notes) == 1
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 255
    second.write_bytes(damaged)
    with pytest.raises(UserError, match="cannot be read"):
        separating(first, second)


HEADERS = {
    "open": "{'descr': ('<i8', 'shape': (3,),", "nested": "{'descr': " + "[" * 9000,
    "too large": "{'descr': '<i8', 'fortran_order': False, 'shape': (10**14,), }",
    "no integer": "{'descr': '<i8', 'fortran_order': False, 'shape': (10**40,), }",
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_arrays_with_a_false_header_are_refused_everywhere(files, tmp_path, header):
    (first, _), (second, _) = files
    text = header.replace("10**14", f"{10**14}").replace("10**40", f"{10**40}").encode() + b"\n"
    false = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text
    for name in (second, tmp_path / "data.npz"):
        with zipfile.ZipFile(name, "w") as file:
            for key in ("labels", "images", "predictions", "broken_by", *REQUIRED):
                file.writestr(f"{key}.npy", false)
    with pytest.raises(UserError, match="cannot be read"):
        separating(first, second)
    assert len(collect([first.parent, second.parent]).notes) == 1
    with pytest.raises(UserError, match=r"data\.npz") as error:
        load_npz(str(tmp_path / "data.npz"))
    assert "\n" not in str(error.value)
