"""The runner: broken images are not attacked again, and interruptions change no result."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_nets import dense_net, new_dense_net
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from runner_nets import IMAGES, LABELS, NET, THREAT, N

from irp_jax import attacks, parallel
from irp_jax.attacks import ascent, attack, runner, state, trials
from irp_jax.errors import UserError

LIST = (
    attacks.Pgd(gradient_steps=2, restarts=2),
    attacks.Pgd(name="pgd-margin", gradient_steps=6, restarts=3, loss=attacks.margin),
)
run = functools.partial(
    attacks.evaluate, NET, IMAGES, LABELS, LIST, threat=THREAT, sanity_checks=False
)


@dataclasses.dataclass(frozen=True)
class Scripted:
    """An attack that breaks image i in trial i % 7 after i % 5 + 1 steps, and records its calls."""

    log: tuple = dataclasses.field(default=(), hash=False, compare=False)
    name: str = "scripted"
    steps: int = 4

    def trials(self, classes):
        return 3

    def start(self, logits_fn, problem):
        # The first pixel holds the number of the image.
        count = len(problem.label)
        return _State(
            attacks.Attacked(problem.image, jnp.zeros(count, bool), jnp.zeros(count)),
            jnp.round(problem.image[:, 0, 0, 0] * 100).astype(jnp.int32),
        )

    def step(self, logits_fn, problem, state, number):
        falls = (state.index % 7 == problem.number) & (number == state.index % 5)
        beaten = problem.image.at[:, 0, 1, 0].set(0.5)
        found = attacks.Attacked(beaten, falls, state.worst.loss)
        return state._replace(worst=attack.where(falls, found, state.worst))


class _State(tuple):
    """A state with a field that the runner does not know and must preserve."""

    __slots__ = ()

    def __new__(cls, worst, index):
        return tuple.__new__(cls, (worst, index))

    worst = property(lambda self: self[0])
    index = property(lambda self: self[1])

    def _replace(self, worst):
        return _State(worst, self.index)


jax.tree_util.register_pytree_node(_State, lambda s: (tuple(s), None), lambda _, c: _State(*c))


def marked(images):
    """A network that misclassifies images whose second pixel is 0.5."""
    return jnp.stack([images[:, 0, 1, 0], jnp.full(len(images), 0.25)], -1)


@pytest.mark.parametrize("batch_size", [4, 30])
def test_trials_follow_one_another_until_one_succeeds(batch_size):
    count = 40
    images = np.zeros((count, 2, 2, 1), np.float32)
    images[:, 0, 0, 0] = np.arange(count) / 100
    labels = np.ones(count, np.int32)
    told = []
    report = attacks.evaluate(
        marked, images, labels, [Scripted()], threat=attacks.linf(0.6), batch_size=batch_size,
        sanity_checks=False, callbacks=attacks.Callbacks(progress=lambda *at: told.append(at)),
    )  # fmt: skip
    index = np.arange(count)
    falls = (index % 7 < 3) & (index % 5 < 4)
    np.testing.assert_array_equal(report.is_robust, ~falls)
    np.testing.assert_array_equal(report.adversarial[:, 0, 1, 0], np.where(falls, 0.5, 0.0))
    assert set(report.broken_by[falls]) == {"scripted"} and set(report.broken_by[~falls]) == {""}
    needed = np.where(falls, 4 * (index % 7) + index % 5 + 1, 3 * 4).sum()
    done = told[-1][0]
    assert done == needed  # one step at a time here: steps // 20 is less than two
    assert told[-1][2] == report.is_robust.sum()


@pytest.mark.parametrize("batch_size", [10, 64])
def test_same_result_for_any_batch_size_and_device_count(batch_size):
    want = run(batch_size=16)
    assert 0 < want.is_robust.sum() < N - 3
    assert len(set(want.broken_by)) >= 4  # natural errors, two attacks and robust images
    for mesh in (None, parallel.mesh()):
        got = run(batch_size=batch_size, mesh=mesh)
        np.testing.assert_array_equal(got.is_robust, want.is_robust)
        np.testing.assert_array_equal(got.broken_by, want.broken_by)
        np.testing.assert_allclose(got.adversarial, want.adversarial, atol=1e-6)
        assert got.accuracy == want.accuracy


@pytest.mark.parametrize("split", [False, True])
def test_same_result_when_survivors_move_into_a_smaller_batch(monkeypatch, split):
    attacked = functools.partial(run, batch_size=64, threat=attacks.linf(0.06))
    want = attacked()
    moved = []
    gather = runner.Slots.gather

    def noted(self, batch, held, size):
        moved.append((len(held), size, int((held >= 0).sum())))
        return gather(self, batch, held, size)

    monkeypatch.setattr(runner.Slots, "gather", noted)
    monkeypatch.setattr(trials, "SMALLEST", 1)
    attacked()
    assert moved == [], "too little to be known_robust"
    monkeypatch.setattr(runner, "WORTHWHILE", 1)
    got = attacked(mesh=parallel.mesh() if split else None)
    assert moved
    assert all(0 < keep_indices <= after <= before // 2 for before, after, keep_indices in moved)
    np.testing.assert_array_equal(got.is_robust, want.is_robust)
    np.testing.assert_array_equal(got.broken_by, want.broken_by)
    np.testing.assert_allclose(got.adversarial, want.adversarial, atol=1e-6)


def test_an_accelerator_moves_survivors_for_more_work_only(monkeypatch):
    attacked = functools.partial(run, batch_size=64, threat=attacks.linf(0.06))
    want = attacked()
    moved = []
    gather = runner.Slots.gather
    monkeypatch.setattr(runner.Slots, "gather", lambda *args: moved.append(args) or gather(*args))
    monkeypatch.setattr(trials, "SMALLEST", 1)
    monkeypatch.setattr(runner, "WORTHWHILE", 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    got = attacked()
    assert moved, "there is more to be known_robust than FASTER"
    np.testing.assert_array_equal(got.broken_by, want.broken_by)
    moved.clear()
    monkeypatch.setattr(runner, "FASTER", 2**40)
    attacked()
    assert moved == []


def test_a_step_is_compiled_once_an_attack_and_batch_size(monkeypatch, caplog):
    """A state with other sharding, or a radius that became an array, would compile again."""
    monkeypatch.setattr(trials, "SMALLEST", 1)
    monkeypatch.setattr(runner, "WORTHWHILE", 1)
    sizes = []
    advance = runner.trials.advance

    def noted(network, attack, batch, count):
        sizes.append((attack.name, len(batch.number)))
        return advance(network, attack, batch, count)

    monkeypatch.setattr(runner.trials, "advance", noted)
    network = Partial(lambda variables, images: dense_net(variables, images), new_dense_net())
    with jax.log_compiles():
        attacks.evaluate(
            network, IMAGES, LABELS, LIST, threat=attacks.linf(0.06), batch_size=64,
            sanity_checks=False, mesh=parallel.mesh(),
        )  # fmt: skip
    compiled = [record.message.split(" with ")[0] for record in caplog.records]
    assert compiled.count("Compiling jit(step)") == len(set(sizes)) > len(LIST)


def test_reports_are_consistent_with_the_network():
    report = run(batch_size=8)
    again = np.asarray(NET(report.adversarial).argmax(-1))
    fell = (report.broken_by != "") & (report.broken_by != "natural")
    assert (again[fell] != LABELS[fell]).all() and fell.any()
    np.testing.assert_array_equal(report.adversarial[~fell], IMAGES[~fell])
    assert np.abs(report.adversarial - IMAGES).max() <= 0.03 + 1e-6
    assert report.adversarial.min() >= 0 and report.adversarial.max() <= 1
    values = [report.natural, *report.accuracy.values()]
    assert values == sorted(values, reverse=True) and values[-1] == report.robust
    assert list(report.accuracy) == list(report.seconds) == [each.name for each in LIST]


def test_another_seed_another_draw_and_the_same_seed_the_same():
    first, same, other = (run(batch_size=8, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.adversarial, same.adversarial)
    assert not np.array_equal(first.adversarial, other.adversarial)


class Killed(Exception):
    pass


def test_goes_on_after_an_interruption_to_the_identical_result(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SAVE_EVERY", 0.0)
    file = tmp_path / "state.npz"
    want = run(batch_size=4)
    calls = 0

    def progress(*_):
        nonlocal calls
        calls += 1
        if calls % 30 == 0:
            raise Killed

    for _attempt in range(200):
        try:
            got = run(batch_size=4, state_file=file, callbacks=attacks.Callbacks(progress=progress))
            break
        except Killed:
            assert file.exists()
    else:
        pytest.fail("no headway from one attempt to the next")
    assert calls > 80
    np.testing.assert_array_equal(got.adversarial, want.adversarial)
    np.testing.assert_array_equal(got.broken_by, want.broken_by)
    assert got.accuracy == want.accuracy
    # The evaluation is finished, so the same call only reads the state file.
    done = run(batch_size=4, state_file=file, callbacks=attacks.Callbacks(progress=progress))
    np.testing.assert_array_equal(done.adversarial, want.adversarial)


def test_the_identity_of_a_state_file_is_the_same_in_every_process():
    described = repr([state.facts_of(setting) for setting in (*LIST, THREAT, 0)])
    assert "0x" not in described and "cross_entropy" in described and "0.03" in described


def test_a_state_file_of_something_else_is_refused(tmp_path):
    file = tmp_path / "state.npz"
    run(batch_size=8, state_file=file)
    with pytest.raises(UserError, match="belongs to an evaluation with other images"):
        run(batch_size=8, state_file=file, seed=1)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        run(batch_size=8, state_file=file)
    with pytest.raises(UserError, match="cannot write"):
        state.write(
            tmp_path / "state.npz" / "x", state.initial(IMAGES, LABELS > 0), "",
            state.Answers(LABELS, IMAGES),
        )  # fmt: skip


def test_a_network_with_equal_outputs_and_other_gradients_is_another(tmp_path):
    """One network quantises. The other does so with a straight-through gradient."""
    file = tmp_path / "state.npz"

    def stepped(images):
        return NET(jnp.round(images * 16) / 16)

    def straight_through(images):
        coarse = images + jax.lax.stop_gradient(jnp.round(images * 16) / 16 - images)
        return NET(coarse)

    settings = {"threat": THREAT, "batch_size": 8, "sanity_checks": False, "state_file": file}
    attacks.evaluate(stepped, IMAGES, LABELS, LIST[:1], **settings)
    with pytest.raises(UserError, match="another network"):
        attacks.evaluate(straight_through, IMAGES, LABELS, LIST[:1], **settings)


def test_a_loss_without_a_name_cannot_be_identified(tmp_path):
    nameless = attacks.Pgd(loss=lambda logits, label: -logits[label])
    with pytest.raises(UserError, match="has no name"):
        attacks.evaluate(
            NET, IMAGES, LABELS, [nameless], threat=THREAT, sanity_checks=False,
            state_file=tmp_path / "state.npz",
        )  # fmt: skip


def test_a_network_trained_further_is_another():
    weights = np.random.default_rng(0).normal(size=(IMAGES[0].size, 3)).astype(np.float32)

    def network(images):
        return images.reshape(len(images), -1) @ weights

    def natural():
        return attacks.evaluate(network, IMAGES, labels, [], threat=THREAT).natural

    labels = np.asarray(network(IMAGES)).argmax(-1)
    assert natural() == 1.0
    weights *= -1
    assert natural() == 0.0


def test_images_broken_in_a_smaller_ball_are_not_attacked_again():
    small = run(batch_size=8)
    at = []
    callbacks = attacks.Callbacks(begin=lambda name, robust: at.append(robust))
    known = attacks.evaluate(
        NET, IMAGES, LABELS, LIST, threat=attacks.linf(0.05), known=small, callbacks=callbacks,
        batch_size=8, sanity_checks=False,
    )  # fmt: skip
    assert at[0] == small.is_robust.sum()
    assert not (known.is_robust & ~small.is_robust).any()
    fell = ~small.is_robust
    np.testing.assert_array_equal(known.adversarial[fell], small.adversarial[fell])
    assert known.natural == small.natural


@pytest.mark.parametrize("shape", [{"data": 2}, {"batch": 2}, {"a": 1, "b": 2}])
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_any_mesh_will_do(shape, kind):
    mesh = jax.make_mesh((*shape.values(),), (*shape,), axis_types=(kind,) * len(shape))
    listed = [attacks.Apgd(name="apgd-ce", loss="ce", steps=3), attacks.Square(steps=3)]
    settings = {"threat": THREAT, "batch_size": 8, "sanity_checks": False}
    variables = new_dense_net()
    wanted = attacks.evaluate(Partial(dense_net, variables), IMAGES, LABELS, listed, **settings)
    placed = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    for network in (Partial(dense_net, variables), Partial(dense_net, placed)):
        got = attacks.evaluate(network, IMAGES, LABELS, listed, mesh=mesh, **settings)
        np.testing.assert_array_equal(got.broken_by, wanted.broken_by)


def test_a_mesh_that_cannot_be_used_is_told():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(UserError, match=r"jax\.sharding\.Mesh with devices, got list"):
        run(batch_size=8, mesh=jax.devices())
    placed = jax.device_put(new_dense_net(), NamedSharding(mesh, PartitionSpec()))
    for given in (None, mesh):
        with pytest.raises(UserError, match="closes over arrays on a mesh of Explicit axes"):
            attacks.evaluate(
                lambda x: dense_net(placed, x),
                IMAGES,
                LABELS,
                LIST,
                threat=THREAT,
                batch_size=8,
                mesh=given,
            )
    with jax.set_mesh(mesh), pytest.raises(UserError, match=r"outside jax\.set_mesh"):
        run(batch_size=8, mesh=mesh)


def test_a_state_file_knows_what_was_known_before(tmp_path):
    small, file = run(batch_size=8), tmp_path / "state.npz"
    larger = {"threat": attacks.linf(0.05), "batch_size": 8, "sanity_checks": False}

    def again(known):
        return attacks.evaluate(NET, IMAGES, LABELS, LIST, known=known, state_file=file, **larger)

    first = again(small)
    np.testing.assert_array_equal(again(small).broken_by, first.broken_by)
    others = (
        None,
        dataclasses.replace(small, broken_by=small.broken_by[::-1]),
        dataclasses.replace(small, adversarial=np.array(IMAGES, np.float32)),
    )
    for other in others:
        with pytest.raises(UserError, match="belongs to an evaluation with other images"):
            again(other)


@pytest.fixture
def other_generator():
    jax.config.update("jax_default_prng_impl", "rbg")
    yield
    jax.config.update("jax_default_prng_impl", "threefry2x32")


def test_what_is_drawn_for_an_image_does_not_depend_on_the_usual_generator(other_generator):
    starts = [attacks.Pgd(gradient_steps=1, restarts=2), attacks.Square(steps=3)]
    settings = {"threat": THREAT, "sanity_checks": False}

    def adversarial(batch_size):
        report = attacks.evaluate(NET, IMAGES, LABELS, starts, batch_size=batch_size, **settings)
        return report.adversarial

    there = [adversarial(batch_size) for batch_size in (4, 8)]
    jax.config.update("jax_default_prng_impl", "threefry2x32")
    np.testing.assert_array_equal(there, [adversarial(8)] * 2)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_a_key_of_another_generator_gives_each_image_its_own_start(other_generator, make):
    rows = [ascent.starts(THREAT, make(3), jnp.asarray(IMAGES[:count])) for count in (2, 7)]
    np.testing.assert_array_equal(rows[0], rows[1][:2])
    assert (rows[0][0] != rows[0][1]).any()


def test_once_is_one_trial_of_each_image():
    pgd = attacks.Pgd(gradient_steps=3)
    state = attacks.once(NET, pgd, jnp.asarray(IMAGES), LABELS, THREAT, key=jax.random.key(0))
    wrong = NET(state.worst.image).argmax(-1) != LABELS
    np.testing.assert_array_equal(state.worst.is_adversarial, wrong)
    assert 3 < wrong.sum() < N


def test_two_attacks_of_one_name_are_refused():
    with pytest.raises(UserError, match="different names, got pgd, pgd"):
        attacks.evaluate(NET, IMAGES, LABELS, [attacks.Pgd()] * 2, threat=THREAT)
