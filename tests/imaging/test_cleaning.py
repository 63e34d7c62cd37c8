"""Cleaning steps on images with known artefacts, against formulas, and on degenerate images."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage.filters import threshold_otsu

from skincancer.data.readers.demo_drawing import _add_hair, draw_lesion
from skincancer.errors import ConfigError
from skincancer.imaging.cleaning import frame, glare, hair, illumination
from skincancer.imaging.cleaning.steps import STEPS, CleaningError, Step, check_clean, clean, clean_stages


def skin(seed=0, height=225, width=300):
    """Create skin with a soft dark lesion and fine noise, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    lesion = 1 / (1 + np.exp((np.hypot(x - width / 2, y - height / 2) - height / 4) / 6))
    tone = np.array([215, 170, 155]) - lesion[..., None] * np.array([90, 95, 90])
    return (tone + rng.normal(0, 1.5, (height, width, 1))).clip(0, 255).astype(np.uint8)


def with_hair(image, shade, seed=1, count=8):
    """Draw curved hairs over an image, and return the image and the mask of the hairs."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    paper = Image.new("L", (3 * width, 3 * height))
    pen = ImageDraw.Draw(paper)
    t = np.linspace(0, 1, 30)[:, None]
    for _ in range(count):
        start, end, bend = rng.uniform(0, [width, height]), rng.uniform(0, [width, height]), rng.normal(0, 15, 2)
        path = 3 * (start * (1 - t) + end * t + 4 * t * (1 - t) * bend)
        pen.line([tuple(point) for point in path], fill=255, width=int(rng.integers(5, 9)))
    cover = np.asarray(paper.reduce(3), np.float64)[..., None] / 255 * 0.9
    return np.rint(image * (1 - cover) + np.array(shade) * cover).astype(np.uint8), cover[..., 0] > 0.3


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def psnr(a, b, where):
    return 10 * np.log10(255**2 / ((a.astype(float) - b) ** 2)[where].mean())


@pytest.mark.parametrize("shade", [(60, 45, 40), (250, 245, 235)], ids=["dark", "light"])
def test_dullrazor_finds_planted_hair_and_restores_the_skin(shade):
    original = skin()
    hairy, truth = with_hair(original, shade)
    repaired, mask = hair.dull_razor(hairy)
    assert mask.dtype == bool
    assert dice(mask, truth) > 0.85
    assert psnr(repaired, original, truth) > psnr(hairy, original, truth) + 15
    far = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0
    assert (repaired[far] == hairy[far]).all(), "pixels without hair do not change"


@pytest.mark.parametrize("slope", [2, 5])
def test_dullrazor_interpolates_between_both_sides_of_a_hair(slope):
    x = np.arange(600)
    edge = np.rint(150 + 40 / (1 + np.exp(-(x - 302.5) / slope)))  # of a lesion, say
    original = np.tile(edge[None, :, None], (450, 1, 3)).astype(np.uint8)
    hairy = original.copy()
    hairy[:, 300:306] = 60
    repaired, mask = hair.dull_razor(hairy)
    assert set(np.flatnonzero(mask.any(axis=0))) == set(range(300, 306))
    assert np.abs(repaired.astype(int) - original).max() <= 2


def test_dullrazor_leaves_no_stripe_from_a_spot_next_to_a_hair():
    hairy = np.full((450, 600, 3), 180, np.uint8)
    hairy[:, 300:306] = 60
    hairy[225, 298] = 250  # the nearest pixel without hair
    repaired, mask = hair.dull_razor(hairy)
    assert mask[:, 300:306].all()
    assert (repaired[:, 299:307] == 180).all()


def test_black_hat_finds_dark_hair_only():
    original = skin()
    hairy, truth = with_hair(original, (60, 45, 40))
    repaired, mask = hair.black_hat(hairy)
    assert dice(mask, truth) > 0.7
    assert psnr(repaired, original, truth) > psnr(hairy, original, truth) + 8
    assert (repaired[~mask] == hairy[~mask]).all()
    light, truth = with_hair(original, (250, 245, 235))
    assert dice(hair.black_hat(light)[1], truth) < 0.3


def test_hair_of_the_demo_images_is_found():
    scores = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        lesion, _ = draw_lesion("nv", rng)
        bare = np.moveaxis(np.asarray(lesion.resize((160, 120))), -1, 0).astype(np.float32) / 255
        hairy = _add_hair(bare, rng)
        truth = np.abs(hairy - bare).max(axis=0) > 0.12
        image = np.moveaxis(np.rint(hairy * 255).clip(0, 255).astype(np.uint8), 0, -1)
        scores.append(dice(hair.find_hair(np.ascontiguousarray(image)), truth))
    assert np.mean(scores) > 0.6


def test_spots_and_short_strokes_are_no_hair():
    image = Image.fromarray(skin())
    pen = ImageDraw.Draw(image)
    for x, y in np.random.default_rng(0).integers(20, 200, (25, 2)):
        pen.ellipse([x, y, x + 3, y + 3], fill=(60, 40, 30))
    assert not hair.find_hair(np.asarray(image)).any()


def test_shades_of_grey_equals_its_formula():
    image = np.random.default_rng(0).integers(20, 120, (13, 17, 3), dtype=np.uint8)
    image[..., 2] //= 2
    for power, ours in (
        (6, illumination.shades_of_grey(image)),
        (1, illumination.grey_world(image)),
        (3, illumination.shades_of_grey(image, 3)),
    ):
        light = (image.astype(float) ** power).mean(axis=(0, 1)) ** (1 / power)
        expected = image / (light / np.linalg.norm(light) * np.sqrt(3))
        assert np.abs(ours - expected.clip(0, 255)).max() <= 0.51
    light = image.max(axis=(0, 1)).astype(float)
    expected = image / (light / np.linalg.norm(light) * np.sqrt(3))
    assert np.abs(illumination.max_rgb(image) - expected.clip(0, 255)).max() <= 0.51


def test_colour_of_the_light_is_removed():
    grey = np.repeat(np.random.default_rng(0).integers(30, 160, (20, 20, 1), dtype=np.uint8), 3, axis=2)
    assert (illumination.shades_of_grey(grey) == grey).all(), "a grey light changes nothing"
    yellow = np.rint(grey * np.array([1.2, 1.0, 0.6])).astype(np.uint8)
    for correct in (illumination.shades_of_grey, illumination.grey_world, illumination.max_rgb):
        means = correct(yellow).mean(axis=(0, 1))
        assert means.max() - means.min() < 1
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 90
    assert (illumination.shades_of_grey(red)[..., 1:] == 0).all()


def lightness(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[..., 0].astype(float)


def test_sigmoid_is_monotonic_and_increases_lesion_contrast():
    image = skin()
    middle = np.zeros(image.shape[:2], bool)
    middle[95:130, 130:170] = True
    corner = np.zeros_like(middle)
    corner[:30, :30] = True
    before, after = lightness(image), lightness(illumination.adaptive_sigmoid(image))
    assert after[middle].mean() <= before[middle].mean() + 1
    assert after[corner].mean() - after[middle].mean() >= before[corner].mean() - before[middle].mean()
    curve = illumination._curve(before.astype(np.uint8))
    threshold = int(threshold_otsu(before.astype(np.uint8)))
    assert int(curve[threshold + 8]) - int(curve[threshold - 8]) > 1.2 * 16, "steeper between the two"
    assert (np.diff(curve.astype(int)) >= 0).all()
    assert (curve[0], curve[255]) == (0, 255)


def test_clahe_raises_local_contrast():
    image = skin()
    corner = np.s_[:40, :40]
    assert lightness(illumination.clahe(image))[corner].std() > 1.3 * lightness(image)[corner].std()


def reflecting():
    image = Image.fromarray(skin())
    truth = Image.new("1", image.size)
    for canvas, fill in ((ImageDraw.Draw(image), (250, 250, 252)), (ImageDraw.Draw(truth), 1)):
        canvas.ellipse([60, 60, 64, 63], fill=fill)
        canvas.ellipse([200, 150, 203, 155], fill=fill)
    ImageDraw.Draw(image).ellipse([140, 100, 154, 114], outline=(250, 250, 252), width=2)
    ImageDraw.Draw(truth).ellipse([140, 100, 154, 114], fill=1)
    return np.asarray(image), np.asarray(truth)


def test_reflections_and_bubbles_are_found_and_filled():
    image, truth = reflecting()
    repaired, mask = glare.fill_glare(image)
    assert (mask & truth).sum() == truth.sum(), "the inside of the bubble too"
    around = cv2.dilate(truth.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    assert not (mask & ~around).any()
    assert psnr(repaired, skin(), truth) > 30
    assert (repaired[~mask] == image[~mask]).all()


def test_reflections_are_brighter_than_seven_tenths_of_white():
    for value, shown in ((170, False), (190, True)):  # 0.67 and 0.75
        image = np.full((450, 600, 3), 100, np.uint8)
        image[200:204, 300:304] = value
        repaired, mask = glare.fill_glare(image)
        assert mask.any() == shown
        assert (abs(repaired.astype(int) - 100).max() <= 3) == shown, "Telea's filling is not exact"


def test_image_with_mostly_reflections_does_not_change():
    for apart, filled in ((12, True), (9, False)):  # spots of 3 px, 5 px with their edges: 25 px of 144, and of 81
        image = np.full((12 * 18, 12 * 18, 3), 120, np.uint8)
        for row, column in np.ndindex(3, 3):
            image[3 + row :: apart, 3 + column :: apart] = 250
        repaired, mask = glare.fill_glare(image)
        assert mask.mean() == pytest.approx(25 / 144 if filled else 0, abs=0.001)
        assert abs(repaired.astype(int) - (120 if filled else image)).max() <= (3 if filled else 0)


def test_pink_light_skin_is_no_reflection():
    assert not glare.fill_glare(skin())[1].any()


def test_border_and_vignette_are_cropped_and_a_dark_lesion_is_not():
    image = skin()
    assert frame.frame_box(image) == (0, 0, 300, 225)
    bordered = np.zeros((265, 360, 3), np.uint8)
    bordered[25:250, 40:340] = image
    left, top, right, bottom = frame.frame_box(bordered)
    assert 40 <= left <= 42
    assert 25 <= top <= 27
    assert 338 <= right <= 340
    assert 248 <= bottom <= 250
    y, x = np.mgrid[:225, :300]
    round_view = image * (np.hypot(x - 150, y - 112) < 140)[..., None].astype(np.uint8)
    left, top, right, bottom = frame.frame_box(round_view)
    assert (right - left) * (bottom - top) > 0.6 * 225 * 300
    assert (round_view[top:bottom, left:right].max(axis=2) == 0).mean() < 0.04 < (round_view.max(axis=2) == 0).mean()
    dark = image.copy()
    dark[40:190, 0:120] = 12
    assert frame.frame_box(dark) == (0, 0, 300, 225), "a dark lesion that reaches an edge"
    dark[:, :30] = 12
    assert frame.frame_box(dark)[0] >= 30, "a dark band that contains the corners"
    dark = image.copy()
    dark[:18, 0:25] = 12
    assert frame.frame_box(dark) == (0, 0, 300, 225), "a frame below a tenth of the edge is not cropped"


SHAPES = [(1, 1), (1, 40), (40, 1), (2, 2), (9, 9), (30, 40)]


@pytest.mark.parametrize("name", STEPS)
def test_tiny_black_white_and_grey_images_pass_unchanged(name):
    for shape in SHAPES:
        for value in (0, 128, 255):
            image = np.full((*shape, 3), value, np.uint8)
            result, box = clean(image, [name])
            assert (result == image).all(), (shape, value)
            assert box == (0, 0, shape[1], shape[0])


@pytest.mark.parametrize("name", STEPS)
def test_noise_of_any_size_keeps_type_and_original(name):
    for shape in SHAPES:
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        before = image.copy()
        result, _ = clean(image, [name])
        assert result.dtype == np.uint8
        assert result.ndim == 3
        assert (image == before).all()


@pytest.mark.parametrize("name", STEPS)
def test_grey_images_stay_grey(name):
    grey = np.repeat(skin()[..., :1], 3, axis=2)
    result, _ = clean(grey, [name])
    assert np.ptp(result.astype(int), axis=2).max() <= 2


def test_image_full_of_hair_does_not_change():
    stripes = np.full((120, 160, 3), 200, np.uint8)
    stripes[:, ::6] = stripes[:, 1::6] = 40
    for shave in (hair.dull_razor, hair.black_hat):
        repaired, mask = shave(stripes)
        assert (repaired == stripes).all()
        assert not mask.any()


@pytest.mark.parametrize("name", STEPS)
def test_arrays_that_are_no_rgb_image_fail(name):
    image = skin(height=20, width=30)
    for wrong, error in (
        (image / 255, TypeError),
        (image.astype(np.int64), TypeError),
        (np.dstack([image, image[..., :1]]), ValueError),
        (image[..., 0], ValueError),
        (image[:0], ValueError),
    ):
        with pytest.raises(error, match=r"expected (uint8, 0 to 255|RGB)"):
            clean(wrong, [name])
        module, _, function = STEPS[name].function.partition(":")
        with pytest.raises(error, match=r"expected (uint8, 0 to 255|RGB)"):
            getattr(__import__(module, fromlist=["_"]), function)(wrong)


def test_steps_run_in_order_and_boxes_refer_to_the_original():
    image = np.zeros((100, 120, 3), np.uint8)
    image[10:90, 20:110] = skin(height=80, width=90)
    by_hand = illumination.shades_of_grey(image)
    left, top, right, bottom = frame.frame_box(by_hand)
    result, box = clean(image, ["colour", "frame"])
    assert box == (left, top, right, bottom) == (20, 10, 110, 90)
    assert (result == by_hand[top:bottom, left:right]).all()
    assert [stage.name for stage in clean_stages(image, ["frame", "hair"])] == ["frame", "hair"]
    other, _ = clean(image, ["frame", "colour"])
    assert (other == illumination.shades_of_grey(image[10:90, 20:110])).all()


def test_error_of_a_failed_step_contains_its_name(monkeypatch):
    monkeypatch.setitem(STEPS, "hair", Step("json:loads", "image", "", ""))
    with pytest.raises(CleaningError, match="cannot be cleaned: hair failed: TypeError"):
        clean(skin(), ["hair"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hare"], "data.clean contains 'hare', which is no cleaning step. Did you mean 'hair'?"),
        (["hair", "colour", "hair"], "data.clean contains 'hair' twice"),
    ],
)
def test_unknown_and_repeated_steps_fail(names, message):
    with pytest.raises(ConfigError) as error:
        check_clean(names)
    assert message in str(error.value)
