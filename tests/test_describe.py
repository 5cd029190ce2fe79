"""bin/describe and --model=FILE.py:NAME: the tables of a network, and errors in one line."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from test_cli import refusal

import irp_jax as irp
from irp_jax import checkpoint
from irp_jax.cli import describe, evaluate, publish, train

NETS = """
    import flax.linen as nn
    import jax.numpy as jnp

    import neighbour


    class Net(nn.Module):
        classes: int
        width: int = 8

        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(self.width, (3, 3), use_bias=False, name="first")(x - 0.5)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
            x = nn.relu(nn.Conv(12, (3, 3), strides=2, name="second")(x))
            return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))


    class Needy(nn.Module):
        depth: int
        scale: float

        def __call__(self, x):
            return x


    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10, name="only")(x.reshape(len(x), -1))


    class Grey(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.ones, (8, 8, 1, 10))
            return jnp.einsum("nhwc,hwck->nk", x, kernel)


    class Picture(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(3, (3, 3))(x)


    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x):
            raise RuntimeError("first line\\nsecond line")


    seven = Net(7)
    mine = Net(10, width=6)
    number = 3
"""


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """Writes the files of a user into a folder and makes it the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(textwrap.dedent(NETS))
    Path("neighbour.py").write_text("")
    Path("raises.py").write_text("import no_such_library\n")
    Path("ends.py").write_text("raise SystemExit(1)\n")
    Path("typo.py").write_text("class Net(:\n")


def shown(capsys, *arguments):
    capsys.readouterr()
    describe.describe(list(arguments))
    return capsys.readouterr().out


def rows(text):
    """Returns the cells of the tables in a text."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith("│")
    ]


def test_a_network_of_ones_own_is_shown(capsys):
    said = shown(capsys, "--model=nets.py:Net", "--image-shape=8,8,1", "--classes=10")
    found = rows(said)
    assert ["first", "conv", "1", "8 (group 1)", "4,608", "72"] in found
    assert ["second", "conv", "8 (group 1)", "12 (group 2)", "13,824", "864"] in found
    assert ["1", "first", "8", "first", "second"] in found
    assert ["2", "second", "12", "second", "classifier"] in found
    assert ["classifier", "10", "the logits"] in found
    assert "18,552 MACs per image, 1,094 parameters, in 2 channel groups" in said
    graph = irp.describe("nets.py:Net", (8, 8, 1), classes=10)
    assert dict(graph.groups) == {"first": 8, "second": 12}


def test_an_instance_has_its_own_arguments_and_one_of_ours_a_width(capsys):
    said = shown(capsys, "--model=nets.py:mine", "--image-shape=8,8,1")
    assert ["1", "first", "6", "first", "second"] in rows(said)
    said = shown(capsys, "--model=resnet8", "--image-shape=8,8,1", "--width=0.5", "--classes=3")
    readers = "stage1_block0/conv1, stage2_block0/conv1, stage2_block0/shortcut"
    assert ["1", "stem", "8", "stem, stage1_block0/conv2", readers] in rows(said)
    assert "smallest budget: " in said and "masked and compact network differ by " in said


def test_what_cannot_be_pruned_is_shown_too(capsys):
    said = shown(capsys, "--model=nets.py:Flat", "--image-shape=8,8,1")
    assert "nothing can be pruned" in said
    assert ["only", "10", "the logits"] in rows(said)


COMMON = [
    ("nets.py", "give a file and a name in it, for instance my_net.py:Net"),
    ("nets.py:", "give a file and a name in it"),
    ("nets.py:a-b", "give a file and a name in it"),
    ("nets.txt:Net", "unknown model 'nets.txt:Net'"),
    ("there/is/none.py:Net", "no file there/is/none.py"),
    ("nets.py:Nett", "unknown network in nets.py 'Nett': did you mean 'Net'"),
    ("nets.py:Needy", "nets.py:Needy needs arguments (depth, scale): give them defaults"),
    ("nets.py:number", "a network of type builtins.int is not known"),
    ("nets.py:Broken", "RuntimeError: first line"),
    ("raises.py:Net", "raises.py cannot be run (ModuleNotFoundError: No module named"),
    ("ends.py:Net", "ends.py cannot be run (SystemExit: 1)"),
    ("typo.py:Net", "typo.py cannot be run (SyntaxError: "),
    ("nets.py:Picture", "it must return logits (N, K)"),
    ("resnet21", "did you mean 'resnet20'"),
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *[([f"--model={model}", "--image-shape=8,8,1"], said) for model, said in COMMON],
        (
            ["--model=nets.py:Grey", "--image-shape=9,9,1"],
            "for images of shape (9, 9, 1): ValueErr",
        ),
        (["--image-shape=8"], "--image-shape takes height,width,channels"),
        (["--image-shape=8,8,0"], "--image-shape takes height,width,channels"),
        (["--image-shape=8x8x1"], "got '8x8x1'"),
        (["--classes=1"], "--classes must be at least 2, got 1"),
        (["--width=0"], "--width must be positive"),
        (["--width=nan"], "--width must be positive"),
        (["--modle=resnet8"], "did you mean '--model'"),
    ],
)
def test_what_cannot_be_described_is_one_line(capsys, monkeypatch, arguments, said):
    assert said in refusal(capsys, monkeypatch, describe.describe, *arguments)


TINY = (
    "--dataset=digits", "--train-images=128", "--batch-size=64", "--epochs=1", "--prune-stop=0.9",
    "--defense=none", "--no-guard",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *[([f"--model={model}"], said) for model, said in COMMON],
        (["--model=nets.py:seven"], "has 7 logits, and the data has 10 classes"),
        (["--model=nets.py:Flat"], "has nothing to prune: all its channels are kept whole"),
        (["--model=nets.py:Net", "--budget=0.001"], "least possible is 0.0"),
        (["--model=nets.py:Net", "--budget=0.01k", "--cost=params"], "the least possible is 0."),
        (["--model=nets.py:Net", "--width=0.5"], "--width=0.5 is for models of ours"),
        (["--model=nets.py:Grey", "--dataset=images.npz"], "for images of shape (9, 9, 1)"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(
    capsys, monkeypatch, arguments, said
):
    pixels, labels = np.zeros((40, 9, 9), np.uint8), np.arange(40) % 10
    np.savez("images.npz", train_images=pixels, train_labels=labels, test_images=pixels,
             test_labels=labels)  # fmt: skip
    small = ("--batch-size=8", "--train-images=0") if "--dataset=images.npz" in arguments else ()
    line = refusal(capsys, monkeypatch, train.train, *TINY, "--workdir=run", *small, *arguments)
    assert said in line
    assert not Path("run").exists()


@pytest.mark.slow
def test_a_network_in_a_file_is_trained_attacked_and_handed_on(capsys, monkeypatch):
    command = [*TINY, "--model=nets.py:Net", "--budget=0.5", "--workdir=run"]
    train.train(command)
    results = json.loads(Path("run/results.json").read_text())
    assert results["model"] == "nets.py:Net" and results["cost"]["macs_ratio"] <= 0.5
    assert set(results["identity"]) > {"model", "model_sha256", "dataset", "epochs"}
    trained = irp.load("run", model="nets.py:Net")
    assert checkpoint.digest(trained.variables) == results["network_sha256"]
    publish.publish(["--run=run", "--into=zoo/mine"])
    assert not Path("zoo/mine/model.onnx").exists()
    assert "without model.onnx" in capsys.readouterr().out
    publish.publish(["--run=run", "--into=zoo/mine", "--model=nets.py:Net", "--authors=Me"])
    assert Path("zoo/mine/model.onnx").exists()
    assert json.loads(Path("zoo/mine/robustbench.json").read_text())["authors"] == "Me"
    assert trained.name == "nets.py:Net"
    here = str(Path.cwd())
    absolute = {
        key: {**results[key], "model": f"{here}/nets.py:Net"} for key in ("config", "identity")
    }
    given = {**results, **absolute, "model": f"{here}/nets.py:Net"}
    Path("absolute.json").write_text(json.dumps(given))
    publish.publish(["--run=run", "--into=zoo/mine", "--results=absolute.json",
                     "--model=nets.py:Net"])  # fmt: skip
    for file in Path("zoo/mine").iterdir():
        assert here.encode() not in file.read_bytes(), file

    Path("nets.py").write_text("")  # the content of the file is part of the identity
    line = refusal(capsys, monkeypatch, train.train, *command)
    assert "unknown network in nets.py 'Net'" in line
    Path("nets.py").unlink()  # the saved network does not need the file
    attack = ["--attack=fgsm", "--images=30", "--out=out.json"]
    found = []
    for place in ("run", "zoo/mine"):
        evaluate.evaluate([f"--checkpoint={place}", *attack])
        found.append(json.loads(Path("out.json").read_text()))
    assert found[0]["accuracy"] == found[1]["accuracy"]
    assert found[0]["network_sha256"] == results["network_sha256"]
    line = refusal(
        capsys, monkeypatch, evaluate.evaluate, "--checkpoint=run", "--model=nets.py:Net", *attack
    )
    assert "no file nets.py" in line


def test_a_file_that_changed_is_another_run(capsys, monkeypatch):
    command = [*TINY, "--model=nets.py:Net", "--budget=0.5", "--workdir=run"]
    train.train(command)
    Path("nets.py").write_text(Path("nets.py").read_text() + "\n# changed\n")
    line = refusal(capsys, monkeypatch, train.train, *command)
    assert "run holds a different run (model_sha256=" in line
