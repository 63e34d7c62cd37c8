"""Hand-crafted features against exact values of synthetic shapes, and on degenerate images."""

import math

import numpy as np
import pytest
from lesion_shapes import COLUMNS, LESION, ROWS, SKIN, abcd, disc, painted
from PIL import Image, ImageDraw
from skimage.color import rgb2lab

from skincancer.imaging.features.abcd import (
    abcd_features,
    abruptness,
    compactness,
    fractal_dimension,
    largest_diameter,
    principal_axes,
    total_dermoscopy_score,
)
from skincancer.imaging.features.colour import SIX_COLOURS, six_colours
from skincancer.imaging.features.families import (
    FAMILIES,
    WORKING_SIDE,
    bring_to_working_size,
    feature_names,
    image_features,
    learned_names,
    prepare_lesion,
)
from skincancer.imaging.features.texture import cooccurrence, glcm_features, hog_features, lbp_features
from skincancer.schema.model import FAMILIES as NAMES


def ellipse(short, long, degrees=0):
    turn = math.radians(degrees)
    along = (COLUMNS - 128) * math.cos(turn) + (ROWS - 128) * math.sin(turn)
    across = -(COLUMNS - 128) * math.sin(turn) + (ROWS - 128) * math.cos(turn)
    return (across / short) ** 2 + (along / long) ** 2 <= 1


def square(side=128):
    mask = np.zeros((256, 256), dtype=bool)
    mask[64 : 64 + side, 64 : 64 + side] = True
    return mask


def koch(order):
    """Create the mask of a Koch snowflake; the dimension of its border is log 4 / log 3 = 1.26."""
    corners = [128 + 110 * np.exp(2j * math.pi * (number / 3 + 0.25)) + 128j for number in (2, 1, 0)]
    for _ in range(order):
        longer = []
        for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
            third = (end - start) / 3
            longer += [start, start + third, start + third + third * np.exp(1j * math.pi / 3), end - third]
        corners = longer
    picture = Image.new("1", (256, 256))
    ImageDraw.Draw(picture).polygon([(corner.real, corner.imag) for corner in corners], fill=1)
    return np.asarray(picture)


def test_circle_is_symmetric_compact_and_has_its_diameter():
    features = abcd(painted(disc()), disc())
    for name in ("shape_major", "shape_minor", "colour_major", "colour_minor", "score"):
        assert features[f"abcd_asymmetry_{name}"] == 0
    assert features["abcd_border_compactness"] == pytest.approx(1, abs=0.02)
    assert features["abcd_border_fractal_dimension"] == pytest.approx(1, abs=0.05)
    assert features["abcd_diameter_px"] == pytest.approx(121, abs=1)
    assert abcd(painted(disc()), disc(), scale=0.5)["abcd_diameter_px"] == pytest.approx(242, abs=2), "of the original"
    assert features["abcd_diameter_by_longer_side"] == pytest.approx(121 / 256, abs=0.01)
    assert features["abcd_border_abruptness"] == 1, "the synthetic border has no gradient"
    assert features["abcd_border_abrupt_segments"] == 8
    assert math.isnan(features["abcd_diameter_mm"]), "no scale is known"
    assert abcd_features(disc(), rgb2lab(painted(disc())), 0.5, 0.01)["abcd_diameter_mm"] == pytest.approx(
        2.42, abs=0.02
    )


def test_ellipse_has_its_axes_and_ramanujans_perimeter():
    long, short = 80, 40
    mask = ellipse(short, long, degrees=30)
    axes = principal_axes(mask)
    assert axes.centre == pytest.approx([128, 128], abs=0.1)
    assert abs(axes.major @ [math.sin(math.radians(30)), math.cos(math.radians(30))]) == pytest.approx(1, abs=1e-3)
    h = (long - short) ** 2 / (long + short) ** 2
    perimeter = math.pi * (long + short) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))
    expected = perimeter**2 / (4 * math.pi * math.pi * long * short)
    assert compactness(mask) == pytest.approx(expected, rel=0.02)
    assert largest_diameter(mask) == pytest.approx(161, abs=1)
    features = abcd(painted(mask), mask)
    assert features["abcd_asymmetry_shape_major"] == pytest.approx(0, abs=0.01)
    assert features["abcd_asymmetry_score"] == 0


def test_half_moon_is_asymmetric_about_one_axis_only():
    mask = disc() & (ROWS <= 128)
    features = abcd(painted(mask), mask)
    # of a half disc, mirrored about the line through its centroid at 4 r / 3 π
    points = np.argwhere(mask)
    mirrored = 2 * points[:, 0].mean() - points[:, 0]
    height = np.sqrt(np.maximum(0, 60**2 - (points[:, 1] - 128) ** 2))
    expected = np.mean((mirrored > 128) | (mirrored < 128 - height))
    assert features["abcd_asymmetry_shape_major"] == pytest.approx(expected, abs=0.01)
    assert features["abcd_asymmetry_shape_major"] > 0.15
    assert features["abcd_asymmetry_shape_minor"] == 0
    assert features["abcd_asymmetry_score"] == 1


def test_half_dark_circle_is_asymmetric_in_colour_only():
    image = painted(disc())
    image[disc() & (COLUMNS > 128)] = (40, 20, 10)
    features = abcd(image, disc())
    assert features["abcd_asymmetry_shape_major"] == features["abcd_asymmetry_shape_minor"] == 0
    difference = np.linalg.norm(rgb2lab(np.array([[LESION]], np.uint8)) - rgb2lab(np.array([[(40, 20, 10)]], np.uint8)))
    # the axes of a circle are the image's: left and right are mirrored about the upright one
    assert features["abcd_asymmetry_colour_minor"] == pytest.approx(difference, rel=0.1)
    assert features["abcd_asymmetry_colour_major"] == pytest.approx(0, abs=0.01)
    assert features["abcd_asymmetry_score"] == 1


def test_a_small_bump_and_a_slight_shade_are_no_asymmetry():
    bumpy = np.zeros((256, 256), dtype=bool)
    bumpy[98:158, 68:188] = True
    bumpy[78:98, 119:137] = True
    features = abcd(painted(bumpy), bumpy)
    # the bump moves the centre by s, and the long sides' mirror images by 2 s
    s = 360 * 40 / (7200 + 360)
    expected = (2 * s * 120 + 360 - 2 * s * 18) / 7560
    assert features["abcd_asymmetry_shape_major"] == pytest.approx(expected, abs=0.01)
    assert 0.06 < expected < 0.1
    assert features["abcd_asymmetry_score"] == 0
    for shade, difference, score in (((132,) * 3, 5, 0), ((150,) * 3, 12, 1)):  # of L 50 to L 55 and 62
        image = painted(disc(), lesion=(119,) * 3)
        image[disc() & (COLUMNS > 128)] = shade
        features = abcd(image, disc())
        assert features["abcd_asymmetry_colour_minor"] == pytest.approx(difference, rel=0.1)
        assert features["abcd_asymmetry_score"] == score


def test_compactness_of_a_square_does_not_depend_on_rotation():
    for degrees in (0, 10, 22.5, 45):
        turned = Image.fromarray(square()).convert("L").rotate(degrees, Image.Resampling.BICUBIC)
        assert compactness(np.asarray(turned) > 127) == pytest.approx(4 / math.pi, rel=0.02), "rounded corners"
    assert compactness(square()) < compactness(ellipse(20, 80))
    assert largest_diameter(square()) == pytest.approx(127 * math.sqrt(2) + 1, abs=0.1)
    features = abcd(painted(square()), square())
    assert features["abcd_asymmetry_score"] == 0


def test_koch_like_border_is_more_irregular_than_a_circle():
    features = {order: (compactness(koch(order)), fractal_dimension(koch(order))) for order in (1, 4)}
    assert features[4][0] > features[1][0] > 1.2 * compactness(disc())
    assert features[4][1] == pytest.approx(math.log(4) / math.log(3), abs=0.1), "four steps of it, in 256 px"
    assert features[4][1] > features[1][1] > fractal_dimension(disc())


def test_fractal_dimension_of_discs_does_not_depend_on_size():
    features = [fractal_dimension(disc(radius)) for radius in (31, 32, 33, 64, 65, 66)]
    assert np.ptp(features) < 0.03
    assert math.isnan(fractal_dimension(disc(7)))
    assert fractal_dimension(disc(8)) == pytest.approx(1, abs=0.2)


def test_border_is_abrupt_in_the_segments_that_end_sharply():
    distance = np.hypot(ROWS - 128, COLUMNS - 128)
    image = painted(disc(40))
    soft = np.clip((distance - 20) / 40, 0, 1)[..., None]  # of 40 px about the border, at 40 px
    gradient = (np.array(LESION) + soft * (np.array(SKIN) - np.array(LESION))).astype(np.uint8)
    right = COLUMNS > 128
    image[~right] = gradient[~right]
    lab = rgb2lab(image)
    segments = abruptness(disc(40), lab, principal_axes(disc(40)))
    assert (segments[[0, 1, 6, 7]] > 0.9).all()
    assert (segments[2:6] < 1 / 3).all()
    assert abcd_features(disc(40), lab)["abcd_border_abrupt_segments"] == 4


def test_abruptness_of_a_ramp_of_two_strips_is_a_half():
    image = painted(disc(), lesion=(110,) * 3, skin=(150,) * 3)
    strip = 0.04 * 120
    ramp = np.clip((np.hypot(ROWS - 128, COLUMNS - 128) - 60) / (2 * strip) + 0.5, 0, 1)
    quarter = (ROWS >= 128) & (COLUMNS >= 128)
    image[quarter] = np.rint(110 + 40 * ramp)[quarter][:, None]
    features = abcd(image, disc())
    assert features["abcd_border_abruptness"] == pytest.approx((6 * 1 + 2 * 0.5) / 8, abs=0.01)
    assert features["abcd_border_abrupt_segments"] == 8, "a half is more than a third"


def test_lesion_with_skin_colour_has_no_abrupt_border():
    features = abcd(painted(disc(), lesion=SKIN), disc())
    assert features["abcd_border_abruptness"] == features["abcd_border_abrupt_segments"] == 0


def test_planted_colours_are_counted():
    image, mask = painted(square(), skin=(200, 150, 140)), square()
    stripes = {"white": 40, "red": 30, "light_brown": 20, "dark_brown": 26, "blue_grey": 8, "black": 4}
    start = 64
    for name, width in stripes.items():
        image[64:192, start : start + width] = SIX_COLOURS[name]
        start += width
    assert start == 192
    shares = six_colours(mask, rgb2lab(image))
    assert shares == pytest.approx({name: width / 128 for name, width in stripes.items()})
    features = abcd(image, mask)
    assert features["abcd_colour_count"] == 5, "four of 128 columns are too few, eight are not"
    assert features["abcd_colour_black_present"] == 0
    assert features["abcd_colour_white_present"] == 1
    expected = rgb2lab(image)[mask].var(axis=0)
    assert [features[f"abcd_colour_variance_{name}"] for name in "lab"] == pytest.approx(expected.tolist())


def test_colour_features_of_a_square_of_two_greys():
    image, mask = painted(square(), lesion=(119,) * 3, skin=(188,) * 3), square()
    image[64:192, 64:96] = (56, 56, 56)  # a quarter
    features = image_features(prepare_lesion(image, mask), ["colour"])
    for channel in ("red", "green", "blue"):
        assert [features[f"colour_{channel}_bin_{number}"] for number in range(8)] == [0, 0.25, 0, 0.75, 0, 0, 0, 0]
    # 116 Y^(1/3) - 16 of IEC 61966-2-1's luminance: 50.0, 23.3 and 75.9
    dark, light, skin = (116 * ((value / 255 + 0.055) / 1.055) ** (2.4 / 3) - 16 for value in (56, 119, 188))
    assert features["colour_l_mean"] == pytest.approx(0.25 * dark + 0.75 * light, abs=0.01)
    assert features["colour_l_std"] == pytest.approx(math.sqrt(0.25 * 0.75) * (light - dark), abs=0.01)
    assert features["colour_l_less_skin"] == pytest.approx(0.25 * dark + 0.75 * light - skin, abs=0.01)


def test_white_counts_only_where_it_is_lighter_than_the_skin():
    image = painted(disc(), lesion=(225, 225, 225), skin=(240, 240, 240))
    assert sum(six_colours(disc(), rgb2lab(image)).values()) == 0
    darker = painted(disc(), lesion=(225, 225, 225), skin=(190, 170, 160))
    assert six_colours(disc(), rgb2lab(darker))["white"] == 1
    vignetted = darker.copy()
    vignetted[~disc(110)] = (4, 4, 4)  # most of what is around, and no skin
    assert six_colours(disc(), rgb2lab(vignetted))["white"] == 1
    image[~disc(110)] = (4, 4, 4)
    assert sum(six_colours(disc(), rgb2lab(image)).values()) == 0


def test_pale_lesion_has_one_colour_and_the_lowest_score():
    features = abcd(painted(disc(), lesion=(225, 225, 225), skin=(230, 228, 227)), disc())
    assert features["abcd_colour_count"] == 1
    assert features["abcd_tds_without_d"] == 0.5, "the lowest score"


def test_vignette_is_not_skin():
    image, mask = painted(disc()), disc()
    before = image_features(prepare_lesion(image, mask), ["colour"])
    image[~disc(110)] = (6, 5, 5)
    features = image_features(prepare_lesion(image, mask), ["colour"])
    assert features == pytest.approx(before)
    image[~mask] = 0
    in_the_dark = image_features(prepare_lesion(image, mask), ["colour"])
    assert {name for name, value in in_the_dark.items() if math.isnan(value)} == {
        "colour_l_less_skin", "colour_a_less_skin", "colour_b_less_skin",
    }  # fmt: skip


def test_total_dermoscopy_score_equals_the_formula():
    assert total_dermoscopy_score(2, 8, 6, 5) == pytest.approx(8.9)  # the highest
    assert total_dermoscopy_score(1, 4, 3, 2) == pytest.approx(4.2)
    image = painted(disc(), lesion=SIX_COLOURS["dark_brown"])
    assert abcd(image, disc())["abcd_tds_without_d"] == pytest.approx(0 + 0.8 + 0.5)


def test_abcd_features_do_not_depend_on_quarter_turns():
    rng = np.random.default_rng(0)
    mask = ellipse(40, 70, degrees=20) & ~disc(18, 90, 160)
    image = painted(mask)
    image[mask] = np.clip(image[mask] + rng.normal(0, 12, (int(mask.sum()), 1)), 0, 255)
    before = abcd(image, mask)
    after = abcd(np.rot90(image).copy(), np.rot90(mask).copy())
    for name, value in before.items():
        # a pixel on the line between two segments, or half-way between two pixels, may go to the other
        assert after[name] == pytest.approx(value, rel=0.01, abs=0.01, nan_ok=True), name


GREY_4X4 = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 2], [2, 2, 3, 3]], dtype=np.uint8)  # Haralick's example


def test_glcm_of_the_known_example():
    matrices = cooccurrence(GREY_4X4, np.ones((4, 4), dtype=bool), distance=1, count=4)
    across = np.array([[4, 2, 1, 0], [2, 4, 0, 0], [1, 0, 6, 1], [0, 0, 1, 2]]) / 24  # Haralick 1973, figure 3
    assert matrices[:, :, 0, 0] == pytest.approx(across)
    contrast = [sum(matrices[i, j, 0, angle] * (i - j) ** 2 for i in range(4) for j in range(4)) for angle in range(4)]
    assert contrast[0] == pytest.approx((2 * 1 * 2 + 4 * 1 * 2 + 1 * 1 * 2) / 24)
    features = glcm_features(GREY_4X4 * 64, np.ones((4, 4), dtype=bool), distances=(1,), count=4)
    assert features["glcm_contrast_distance_1"] == pytest.approx(np.mean(contrast))


def test_glcm_properties_of_the_known_example_equal_their_formulas():
    counts = np.array([
        [[4, 2, 1, 0], [2, 4, 0, 0], [1, 0, 6, 1], [0, 0, 1, 2]],
        [[6, 0, 2, 0], [0, 4, 2, 0], [2, 2, 2, 2], [0, 0, 2, 0]],
        [[2, 1, 3, 0], [1, 2, 1, 0], [3, 1, 0, 2], [0, 0, 2, 0]],
        [[4, 1, 0, 0], [1, 2, 2, 0], [0, 2, 4, 1], [0, 0, 1, 0]],
    ])  # fmt: skip  # Haralick 1973, figure 3: along rows, columns and both diagonals
    i, j = np.indices((4, 4))
    expected = []
    for p in (count / count.sum() for count in counts):
        mean, some = (i * p).sum(), p[p > 0]
        expected.append({
            "contrast": ((i - j) ** 2 * p).sum(),
            "dissimilarity": (abs(i - j) * p).sum(),
            "homogeneity": (p / (1 + (i - j) ** 2)).sum(),
            "energy": math.sqrt((p**2).sum()),
            "correlation": ((i - mean) * (j - mean) * p).sum() / ((i - mean) ** 2 * p).sum(),
            "entropy": -(some * np.log(some)).sum(),
        })  # fmt: skip
    features = glcm_features(GREY_4X4 * 64, np.ones((4, 4), dtype=bool), distances=(1,), count=4)
    assert features == pytest.approx(
        {f"glcm_{name}_distance_1": np.mean([one[name] for one in expected]) for name in expected[0]}
    )


def test_glcm_at_two_px_has_diagonal_pairs_two_px_apart():
    matrices = cooccurrence(GREY_4X4, np.ones((4, 4), dtype=bool), distance=2, count=4)
    # (0, 0) (0, 1) (1, 0) (1, 1) with what is two rows down and two columns right: 0-2, 0-2, 0-3, 0-3
    expected = np.zeros((4, 4))
    expected[[0, 2], [2, 0]] = 2 / 8
    expected[[0, 3], [3, 0]] = 2 / 8
    falling, rising = matrices[:, :, 0, 3], matrices[:, :, 0, 1]  # scikit-image counts rows downwards
    # (0, 2) (0, 3) (1, 2) (1, 3) with two columns left: 1-0, 1-2, 1-2, 1-2
    other = np.zeros((4, 4))
    other[[0, 1], [1, 0]] = 1 / 8
    other[[1, 2], [2, 1]] = 3 / 8
    assert {falling.tobytes(), rising.tobytes()} == {expected.tobytes(), other.tobytes()}
    # row by row: 0-1 0-1, 0-1 0-1, 0-2 2-2, 2-3 2-3
    across = np.array([[0, 4, 1, 0], [4, 0, 0, 0], [1, 0, 2, 2], [0, 0, 2, 0]]) / 16
    assert matrices[:, :, 0, 0] == pytest.approx(across)


def test_glcm_counts_pairs_inside_the_lesion_only():
    mask = np.ones((4, 4), dtype=bool)
    mask[3] = False
    of_part = cooccurrence(GREY_4X4, mask, distance=1, count=4)
    of_crop = cooccurrence(GREY_4X4[:3], mask[:3], distance=1, count=4)
    assert of_part == pytest.approx(of_crop)


def test_glcm_of_a_mask_smaller_than_the_distance_is_nan():
    mask = np.zeros((8, 8), dtype=bool)
    mask[3, 3:5] = True  # two pixels, side by side
    features = glcm_features(np.full((8, 8), 200, dtype=np.uint8), mask)
    assert features["glcm_contrast_distance_1"] == 0
    assert math.isnan(features["glcm_contrast_distance_2"])
    assert math.isnan(features["glcm_contrast_distance_4"])


def test_lbp_of_a_flat_lesion_is_one_pattern():
    features = lbp_features(np.full((64, 64), 90, dtype=np.uint8), disc()[96:160, 96:160])
    assert features["lbp_radius_1_pattern_8"] == 1  # no neighbour is darker: all eight are set
    assert features["lbp_radius_2_pattern_16"] == 1


def test_lbp_compares_pixels_at_its_radius():
    grey, mask = np.full((9, 9), 255, dtype=np.uint8), np.zeros((9, 9), dtype=bool)
    grey[3:6, 3:6] = 0
    grey[4, 4], mask[4, 4] = 100, True
    features = lbp_features(grey, mask)
    assert features["lbp_radius_1_pattern_0"] == 1, "darker all around"
    assert features["lbp_radius_2_pattern_16"] == 1, "brighter all around"


def test_hog_of_an_upright_line_is_in_its_cells_and_its_orientation():
    grey = np.full((64, 64), 50, dtype=np.uint8)
    grey[:28, 39:41] = 150  # of cells of 16 px: rows 0 and 1 of column 2
    features = hog_features(grey, np.ones((64, 64), dtype=bool))
    for row in (0, 1):
        # the two share a length of 1; orientation 0 is that of a change from left to right
        assert features.pop(f"hog_row_{row}_column_2_orientation_0") == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert max(features.values()) < 0.2


def test_feature_names_are_the_same_for_every_image():
    names = feature_names()
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert all(name.startswith(f"{family}_") for name in feature_names([family]))
    assert list(image_features(prepare_lesion(painted(disc()), disc()))) == ["mask_empty", *names]
    assert list(image_features(prepare_lesion(painted(disc()), np.zeros((256, 256), bool)), ["lbp"])) == [
        "mask_empty", *feature_names(["lbp"]),
    ]  # fmt: skip


def test_learned_features_do_not_depend_on_resolution(tiny_demo):
    image, mask = sorted((tiny_demo / "images").iterdir())[0], sorted((tiny_demo / "masks").iterdir())[0]
    picture = Image.open(image).convert("RGB").resize((1024, 768), Image.Resampling.BICUBIC)
    lesion = Image.open(mask).convert("L").resize(picture.size)
    features = []
    for size in (picture.size, (512, 384)):
        small = np.asarray(lesion.resize(size)) >= 128
        features.append(image_features(bring_to_working_size(picture.resize(size, Image.Resampling.BICUBIC), small)))
    one, other = features
    assert one["abcd_diameter_px"] == pytest.approx(2 * other["abcd_diameter_px"], rel=0.02)
    names = learned_names()
    assert "abcd_diameter_by_longer_side" in names
    assert not {"abcd_diameter_px", "abcd_diameter_mm"} & set(names), "the resolution depends on the source"
    for name in names:
        texture = name.startswith(("glcm", "lbp", "hog"))
        assert other[name] == pytest.approx(one[name], rel=0.15, abs=0.03 if texture else 0.08), name


def test_working_size_keeps_proportions_at_any_resolution():
    small = Image.fromarray(painted(disc())).resize((256, 192))
    mask = np.asarray(Image.fromarray(disc()).resize((256, 192)))
    large = small.resize((1024, 768), Image.Resampling.NEAREST), np.kron(mask, np.ones((4, 4), dtype=bool))
    lesion = bring_to_working_size(*large)
    assert lesion.image.shape == (192, WORKING_SIDE, 3)
    features, again = image_features(lesion), image_features(bring_to_working_size(small, mask))
    assert features["abcd_diameter_px"] == pytest.approx(4 * again["abcd_diameter_px"], rel=0.02)
    assert features["abcd_border_compactness"] == pytest.approx(again["abcd_border_compactness"], rel=0.02)


def test_mask_at_working_size_ends_where_half_of_a_pixel_is_lesion():
    mask = np.zeros((512, 512), dtype=bool)
    mask[:, :256] = True
    small = bring_to_working_size(Image.new("RGB", (512, 512), LESION), mask).mask
    assert small[:, :128].all()
    assert not small[:, 128:].any()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (127, 127, 127)])
def test_image_of_one_colour_has_features(colour):
    features = image_features(
        prepare_lesion(np.full((64, 64, 3), colour, dtype=np.uint8), disc()[96:160, 96:160] | True)
    )
    unmeasured = {name for name, value in features.items() if math.isnan(value)}
    assert unmeasured == {
        "colour_l_less_skin", "colour_a_less_skin", "colour_b_less_skin", "abcd_border_abruptness",
        "abcd_border_abrupt_segments", "abcd_tds", "abcd_tds_without_d", "abcd_diameter_mm",
    }, "there is no skin to compare with, and no scale"  # fmt: skip


def test_grey_image_has_features_without_colour():
    grey = np.repeat(np.random.default_rng(0).integers(0, 255, (64, 64, 1), dtype=np.uint8), 3, axis=2)
    features = image_features(prepare_lesion(grey, disc()[96:160, 96:160]))
    assert features["abcd_colour_variance_a"] == pytest.approx(0, abs=1e-4)
    assert features["colour_red_bin_0"] == features["colour_blue_bin_0"]


def test_one_pixel_image_has_features():
    for mask in (True, False):
        features = image_features(bring_to_working_size(Image.new("RGB", (1, 1), LESION), np.full((1, 1), mask)))
        assert features["mask_empty"] == (not mask)
        assert math.isnan(features["abcd_asymmetry_score"]) is not mask
    single = np.zeros((256, 256), dtype=bool)
    single[7, 9] = True
    features = image_features(prepare_lesion(painted(single), single))
    assert features["abcd_diameter_px"] == 1
    assert math.isnan(features["abcd_border_fractal_dimension"])
    assert math.isnan(features["glcm_contrast_distance_1"])


def test_empty_mask_has_only_the_mask_empty_feature():
    features = image_features(prepare_lesion(painted(disc()), np.zeros((256, 256), dtype=bool)))
    assert features.pop("mask_empty") == 1
    assert all(math.isnan(value) for value in features.values())


def test_lesion_that_touches_every_border_is_measured():
    mask = ellipse(128, 128)
    mask[:, 128] = mask[128] = True
    features = image_features(prepare_lesion(painted(mask), mask))
    assert [name for name, value in features.items() if math.isnan(value)] == ["abcd_diameter_mm"], "no scale is known"
    assert features["abcd_asymmetry_score"] == 0


def test_wrong_shapes_fail():
    with pytest.raises(ValueError, match=r"mask is uint8 \(256, 256\); expected bool \(256, 256\)"):
        prepare_lesion(painted(disc()), disc().astype(np.uint8))
    with pytest.raises(ValueError, match=r"image is uint8 \(256, 256\); expected uint8 \(H, W, 3\)"):
        prepare_lesion(painted(disc())[..., 0], disc())
    with pytest.raises(ValueError, match=r"mask is .*; expected bool \(3, 4\)"):
        bring_to_working_size(Image.new("RGB", (4, 3)), np.ones((4, 3), dtype=bool))


def test_schema_names_the_families():
    assert tuple(FAMILIES) == NAMES
