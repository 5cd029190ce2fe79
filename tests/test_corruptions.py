"""Tests of irp_jax.data.corruptions."""

import io

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image

from irp_jax.data.corruptions import CORRUPTIONS, SEVERITIES, blur, corrupt, draws, weather
from irp_jax.errors import UserError

DETERMINISTIC = {
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
}  # fmt: skip


def photographs():
    """Returns fifteen crops of a photograph, ``(15, 32, 32, 3)`` uint8."""
    photograph = load_sample_image("china.jpg")[:384].astype(float)
    small = photograph.reshape(96, 4, 160, 4, 3).mean((1, 3))
    pieces = small.reshape(3, 32, 5, 32, 3).transpose(0, 2, 1, 3, 4).reshape(15, 32, 32, 3)
    return np.rint(pieces).astype(np.uint8)


PHOTOGRAPHS = photographs()
GREY = np.rint(PHOTOGRAPHS.mean(-1, keepdims=True)).astype(np.uint8)


def flat(level, number=4, side=48, channels=3):
    return np.full((number, side, side, channels), level, np.uint8)


def difference(first, second):
    return np.abs(first.astype(int) - second.astype(int))


# All corruptions ---------------------------------------------------------------------------------


def test_the_names_are_the_published_ones():
    assert CORRUPTIONS == (
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur",
        "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
        "elastic_transform", "pixelate", "jpeg_compression",
    )  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (28, 28, 1)], ids=str)
def test_any_shape_is_kept_and_the_input_is_not_written_to(name, shape):
    images = np.random.RandomState(0).randint(0, 256, (3, *shape)).astype(np.uint8)
    before = images.copy()
    for severity in SEVERITIES:
        result = corrupt(images, name, severity)
        assert result.shape == images.shape and result.dtype == np.uint8
    assert (result != images).any()
    np.testing.assert_array_equal(images, before)
    assert corrupt(images[:0], name, 1).shape == (0, *shape)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", [1, 5])
def test_an_image_depends_on_its_index_and_the_seed_alone(name, severity):
    whole = corrupt(PHOTOGRAPHS, name, severity, seed=7)
    some = np.array([11, 2, 5])
    subset = corrupt(PHOTOGRAPHS[some], name, severity, seed=7, indices=some)
    np.testing.assert_array_equal(subset, whole[some])
    np.testing.assert_array_equal(corrupt(PHOTOGRAPHS[:4], name, severity, seed=7), whole[:4])
    other_seed = corrupt(PHOTOGRAPHS, name, severity, seed=8)
    moved = corrupt(PHOTOGRAPHS, name, severity, seed=7, indices=np.arange(15) + 1)
    for other in (other_seed, moved):
        assert (other == whole).all() == (name in DETERMINISTIC)


def test_severities_and_names_have_draws_of_their_own():
    images = flat(128, side=32)
    noise = [
        corrupt(images, name, severity).ravel()
        for name, severity in [("gaussian_noise", 4), ("gaussian_noise", 5), ("shot_noise", 5)]
    ]
    correlation = np.corrcoef(noise) - np.eye(3)
    assert np.abs(correlation).max() < 0.05


def test_large_batches_are_corrupted_as_small_ones():
    images = np.random.RandomState(1).randint(0, 256, (300, 8, 8, 1)).astype(np.uint8)
    whole = corrupt(images, "snow", 3)
    tail = np.arange(120, 300)
    np.testing.assert_array_equal(corrupt(images[tail], "snow", 3, indices=tail), whole[tail])
    same = corrupt(images[[0] * 150], "gaussian_noise", 3)
    assert len(np.unique(same, axis=0)) == 150


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "elastic_transform"])
@pytest.mark.parametrize("images", [PHOTOGRAPHS, GREY], ids=["colour", "grey"])
def test_the_last_severity_departs_further_than_the_first(name, images):
    first, last = (difference(corrupt(images, name, s), images).mean() for s in (1, 5))
    assert last > 1.2 * first


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if "noise" not in name])
def test_grey_is_corrupted_as_colour_is(name):
    colour = GREY.repeat(3, -1)
    # Frost is tinted, and JPEG stores two colour channels.
    tolerance = {"frost": 10, "jpeg_compression": 3}.get(name, 1)
    result = corrupt(colour, name, 4).mean(-1)
    assert np.abs(result - corrupt(GREY, name, 4)[..., 0]).max() <= tolerance


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if "blur" in name] + [
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
])  # fmt: skip
def test_what_only_moves_or_mixes_pixels_leaves_a_flat_image_alone(name):
    for severity in SEVERITIES:
        np.testing.assert_array_equal(corrupt(flat(128), name, severity), flat(128))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corrupt(GREY, "defocus", 1), "unknown corruption 'defocus': did you mean 'defo"),
        (lambda: corrupt(GREY, "fog", 0), "severity must be 1, 2, 3, 4 or 5, got 0"),
        (lambda: corrupt(GREY, "fog", 6), "severity must be 1, 2, 3, 4 or 5, got 6"),
        (lambda: corrupt(GREY, "fog", 1, seed=-1), "seed must be in [0, 2^32), got -1"),
        (lambda: corrupt(GREY / 255, "fog", 1), "images must be uint8"),
        (lambda: corrupt(GREY[..., 0], "fog", 1), "images must be uint8"),
        (lambda: corrupt(GREY.repeat(4, -1), "fog", 1), "images must be uint8"),
        (lambda: corrupt(GREY[:, :7], "fog", 1), "at least 8 x 8 pixels"),
        (lambda: corrupt(GREY, "fog", 1, indices=np.arange(3)), "each image needs an index"),
    ],
)
def test_bad_input_names_the_value(call, message):
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value)


# Noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.04), (3, 0.08), (5, 0.10)])
def test_gaussian_noise_has_the_published_deviation(severity, deviation):
    noise = corrupt(flat(128), "gaussian_noise", severity) / 255 - 128 / 255
    assert noise.std() == pytest.approx(deviation, rel=0.03)
    assert abs(noise.mean()) < 0.003
    red, green = noise[..., 0].ravel(), noise[..., 1].ravel()
    assert abs(np.corrcoef(red, green)[0, 1]) < 0.05


@pytest.mark.parametrize("level", [0, 40, 160])
def test_shot_noise_has_the_variance_of_a_count(level):
    noisy = corrupt(flat(level), "shot_noise", 5) / 255
    assert noisy.mean() == pytest.approx(level / 255, abs=0.004)
    assert noisy.var() == pytest.approx(level / 255 / 50, rel=0.06)


@pytest.mark.parametrize(("severity", "amount"), [(1, 0.01), (5, 0.07)])
def test_impulse_noise_sets_black_and_white_equally_often(severity, amount):
    noisy = corrupt(flat(100, number=16), "impulse_noise", severity)
    assert set(np.unique(noisy)) == {0, 100, 255}
    assert (noisy == 0).mean() == pytest.approx(amount / 2, rel=0.12)
    assert (noisy == 255).mean() == pytest.approx(amount / 2, rel=0.12)


# Blur --------------------------------------------------------------------------------------------


def test_defocus_is_a_disk():
    light = np.zeros((1, 9, 9, 1), np.uint8)
    light[0, 4, 4] = 255
    square, plus = (corrupt(light, "defocus_blur", s)[0, 2:7, 2:7, 0] for s in (5, 4))
    np.testing.assert_array_equal(square, np.pad(np.full((3, 3), 28), 1))  # 255 / 9
    np.testing.assert_array_equal(plus[1:4, 1:4], [[0, 51, 0], [51, 51, 51], [0, 51, 0]])
    taps = np.exp(-0.5 * np.array([1, 0, 1]) / 0.5**2)
    soft = 255 * np.outer(taps, taps) / taps.sum() ** 2
    np.testing.assert_array_equal(
        corrupt(light, "defocus_blur", 2)[0, 3:6, 3:6, 0], np.rint(soft).astype(int)
    )


def test_glass_takes_pixels_from_above_and_left():
    images = np.random.RandomState(2).randint(0, 256, (4, 16, 12, 3)).astype(np.uint8)
    result = corrupt(images, "glass_blur", 1)  # this blur is too weak to reach the next pixel
    shifted = np.stack([np.roll(images, (y, x), (1, 2)) for y in (0, 1) for x in (0, 1)])
    taken = (result == shifted).all(-1)
    assert taken.any(0).all()
    assert taken[0, :, :2].all() and taken[0, :, :, :2].all()
    np.testing.assert_allclose(taken[:, :, 2:, 2:].mean((1, 2, 3)), 0.25, atol=0.06)


@pytest.mark.parametrize("degrees", [0, 30, 90, -100])
def test_a_line_blur_smears_a_point_into_a_half_gaussian(degrees):
    radius, sigma = 4, 2.0
    light = np.zeros((1, 31, 31, 1))
    light[0, 15, 15] = 1
    result = blur.line_blur(light, np.array([degrees]), radius, sigma)[0, :, :, 0]
    expected = np.zeros((31, 31))
    weights = np.exp(-0.5 * (np.arange(9) / sigma) ** 2)
    for step, weight in enumerate(weights / weights.sum()):
        # A pixel takes the mean along the line, so a point is spread to the other side.
        down = np.ceil(step * np.sin(np.deg2rad(degrees)) - 0.5)
        right = np.ceil(step * np.cos(np.deg2rad(degrees)) - 0.5)
        expected[15 - int(down), 15 - int(right)] += weight
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_each_image_moves_in_its_own_direction():
    light = np.zeros((20, 31, 31, 1))
    light[:, 15, 15] = 1
    random = draws.generators(0, range(20), "motion_blur", 1)
    smeared = blur.motion_blur(light, random, 9, 2.5)[..., 0]
    rows, columns = (
        (smeared * places).sum((1, 2)) - 15 for places in np.indices((31, 31)).astype(float)
    )
    assert (columns < 0).all() and (np.abs(rows) <= 1.2 * -columns).all()
    assert (rows > 0).any() and (rows < 0).any()


@pytest.mark.parametrize("factor", [1, 1.07, 1.25, 1.75, 2.25])
@pytest.mark.parametrize("side", [8, 28, 32, 33])
def test_magnify_is_scipys_zoom_of_the_middle(factor, side):
    images = np.random.RandomState(3).uniform(size=(2, side, side, 1))
    cropped = int(np.ceil(side / factor))
    top = (side - cropped) // 2
    middle = images[:, top : top + cropped, top : top + cropped]
    zoomed = ndimage.zoom(middle, (1, factor, factor, 1), order=1)
    trim = (zoomed.shape[1] - side) // 2
    expected = zoomed[:, trim : trim + side, trim : trim + side]
    np.testing.assert_allclose(blur.magnify(images, factor), expected, atol=1e-9)


def test_zoom_blur_averages_every_percent():
    images = PHOTOGRAPHS / 255
    versions = [images, *(blur.magnify(images, 1 + percent / 100) for percent in range(7))]
    np.testing.assert_array_equal(
        corrupt(PHOTOGRAPHS, "zoom_blur", 1), np.rint(255 * np.mean(versions, 0)).astype(np.uint8)
    )


# Weather -----------------------------------------------------------------------------------------


def test_clouds_are_a_diamond_square_map():
    side, decay = 8, 1.75
    (generator,) = draws.generators(0, [0], "fog", 5)
    noise = generator.uniform(-1, 1, (side, side))
    known = {(0, 0): 0.0}

    def fill(row, column, neighbours, amplitude):
        four = [known[y % side, x % side] for y, x in neighbours]
        known[row, column] = sum(four) / 4 + amplitude * noise[row, column]

    for step, amplitude in ((8, 1.0), (4, decay**-2), (2, decay**-4)):
        half = step // 2
        for y in range(half, side, step):
            for x in range(half, side, step):
                diagonal = [(y + dy, x + dx) for dy in (-half, half) for dx in (-half, half)]
                fill(y, x, diagonal, amplitude)
        for y in range(0, side, half):
            for x in range(half - y % step, side, step):
                across = [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]
                fill(y, x, across, amplitude)
    expected = np.array([[known[y, x] for x in range(side)] for y in range(side)])
    expected = (expected - expected.min()) / np.ptp(expected)
    sky = weather.clouds(draws.generators(0, [0], "fog", 5), 7, 8, decay)
    np.testing.assert_allclose(sky[0, :, :, 0], expected[:7], atol=1e-12)


def test_fog_dims_and_lifts_but_never_passes_the_brightest_pixel():
    for severity, density in [(1, 0.2), (5, 1.5)]:
        foggy = corrupt(PHOTOGRAPHS, "fog", severity)
        brightest = PHOTOGRAPHS.max((1, 2, 3)).astype(float)
        assert (foggy.max((1, 2, 3)) <= brightest).all()
        least = PHOTOGRAPHS.min((1, 2, 3)) * brightest / (brightest + 255 * density)
        assert (foggy.min((1, 2, 3)) >= np.floor(least)).all()


def test_snow_only_brightens_and_its_flakes_are_grey():
    for severity in SEVERITIES:
        assert (corrupt(PHOTOGRAPHS, "snow", severity) >= PHOTOGRAPHS).all()
        snowy = corrupt(flat(0), "snow", severity)
        np.testing.assert_array_equal(snowy[..., 0], snowy[..., 2])
        np.testing.assert_array_equal(snowy, snowy[:, ::-1, ::-1])


def test_frost_has_the_level_tint_and_contrast_of_the_photographs():
    pattern = corrupt(flat(0, number=100, side=32), "frost", 5) / 255 / 0.45
    np.testing.assert_allclose(pattern.mean((0, 1, 2)), [0.57, 0.65, 0.70], atol=0.04)
    grey = pattern.mean(-1)
    assert 0.10 < grey.mean((1, 2)).std() < 0.18
    np.testing.assert_allclose(grey.std((1, 2)), 0.09, atol=0.01)
    grey -= grey.mean((1, 2), keepdims=True)
    neighbours = (grey[:, 1:] * grey[:, :-1]).mean() / (grey**2).mean()
    assert 0.25 < neighbours < 0.45


def test_brightness_is_the_value_of_hsv():
    images = np.random.RandomState(4).randint(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    images[0, :4] = 0
    for severity, amount in zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True):
        hsv = rgb_to_hsv(images / 255)
        hsv[..., 2] = np.minimum(hsv[..., 2] + amount, 1)
        expected = 255 * hsv_to_rgb(hsv)
        assert np.abs(corrupt(images, "brightness", severity) - expected).max() <= 0.501


# Digital -----------------------------------------------------------------------------------------


def test_contrast_is_about_the_mean_of_each_channel():
    for severity, factor in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        mean = PHOTOGRAPHS.mean((1, 2), keepdims=True)
        expected = mean + factor * (PHOTOGRAPHS - mean)
        assert np.abs(corrupt(PHOTOGRAPHS, "contrast", severity) - expected).max() <= 0.501


def test_pixelate_gives_each_pixel_the_mean_of_its_cell():
    for severity, small in zip(SEVERITIES, (30, 28, 27, 24, 20), strict=True):
        cell = ((np.arange(32) + 0.5) * small // 32).astype(int)
        belongs = (cell == np.arange(small)[:, None]) / np.bincount(cell)[:, None]
        means = np.einsum("ir,jc,nrcd->nijd", belongs, belongs, PHOTOGRAPHS, optimize=True)
        result = corrupt(PHOTOGRAPHS, "pixelate", severity)
        assert np.abs(result - means[:, cell][:, :, cell]).max() <= 1.001


@pytest.mark.parametrize("images", [PHOTOGRAPHS, GREY], ids=["colour", "grey"])
def test_jpeg_is_pillows_round_trip(images):
    for severity, quality in zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True):
        for image, result in zip(
            images, corrupt(images, "jpeg_compression", severity), strict=True
        ):
            file = io.BytesIO()
            Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
            np.testing.assert_array_equal(result.squeeze(), np.asarray(Image.open(file)))


def test_elastic_is_affine_at_first_and_rough_at_last():
    slope = (8 + 7 * np.arange(33)).astype(np.uint8)
    ramps = np.tile(slope[:, None, None], (60, 1, 33, 1))
    roughness = []
    for severity in SEVERITIES:
        middle = corrupt(ramps, "elastic_transform", severity)[:, 9:-9, 9:-9, 0].astype(float)
        roughness.append(np.abs(np.diff(middle, 2, axis=2)).mean())
        assert middle.mean() == pytest.approx(slope[9:-9].mean(), rel=0.05)
    assert roughness[0] < 0.6  # only rounding errors
    assert roughness[4] > 1.5 * roughness[3] > 1.5 * 1.5 * roughness[0]
