from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image as image_file
from matplotlib.colors import to_hex, to_rgb
from scipy import ndimage

from skincancer.imaging.overlay import PREDICTION_COLOUR, TRUTH_COLOUR, draw_overlay
from skincancer.visualization.segmentation import ROWS, Case, choose_cases, jaccard_histogram, overlay_sheet
from skincancer.visualization.style import save

BLUE, YELLOW = (tuple(round(255 * part) for part in to_rgb(colour)) for colour in (TRUTH_COLOUR, PREDICTION_COLOUR))


def box(shape, top, left, bottom, right):
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def case(shape=(60, 80), image_id="ISIC_0000000", jaccard=0.5):
    image = np.random.default_rng(0).integers(90, 110, size=(*shape, 3), dtype=np.uint8)
    h, w = shape
    return Case(image_id, image, box(shape, 0, 0, h // 2, w // 2), box(shape, h // 4, w // 4, h, w), jaccard)


def painted(overlay, colour):
    return (overlay == np.array(colour, dtype=np.uint8)).all(axis=2)


def test_cases_are_the_best_median_and_worst_images():
    jaccard = np.array([0.1, 0.9, 0.5, 0.7, 0.3, 0.8, 0.2, 0.6, 0.4])
    assert choose_cases(jaccard, 2) == {"best": [1, 5], "median": [7, 2], "worst": [0, 6]}
    assert choose_cases(jaccard, 1) == {"best": [1], "median": [2], "worst": [0]}
    assert choose_cases(jaccard, 3) == {"best": [1, 5, 3], "median": [7, 2, 8], "worst": [0, 6, 4]}
    assert choose_cases(jaccard, 100) == choose_cases(jaccard, 3)


def test_few_images_are_not_chosen_twice():
    assert choose_cases([0.5], 3) == {"best": [0], "median": [], "worst": []}
    assert choose_cases([0.5, 0.6], 3) == {"best": [1], "median": [], "worst": [0]}
    assert choose_cases([0.5, 0.5, 0.6], 3) == {"best": [2], "median": [0], "worst": [1]}
    for count in range(1, 30):
        for n in range(1, 12):
            jaccard = np.random.default_rng(count).random(count).round(1)
            chosen = choose_cases(jaccard, n)
            assert tuple(chosen) == ROWS
            positions = [position for row in chosen.values() for position in row]
            assert len(set(positions)) == len(positions) == min(count, 3 * n)
            assert max(map(len, chosen.values())) <= n
            best, median, worst = (jaccard[chosen[name]].tolist() for name in ROWS)
            assert best + median + worst[::-1] == sorted(best + median + worst, reverse=True)
            if count >= 3 * n and n > 1:
                assert median[-1] <= np.median(jaccard) <= median[0]


@pytest.mark.parametrize(("jaccard", "n"), [([], 1), ([0.5, np.nan], 1), ([[0.5]], 1), ([0.5], 0)])
def test_choice_from_invalid_values_fails(jaccard, n):
    with pytest.raises(
        ValueError, match=r"expected \(N,\) with at least one image and no NaN|n is 0; expected 1 or more"
    ):
        choose_cases(jaccard, n)


def test_sheet_shows_every_case_in_its_row(tmp_path):
    cases = {
        "best": [case(image_id=f"good_{i}", jaccard=0.9) for i in range(3)],
        "median": [],
        "worst": [case((90, 30), "$bad$", 0.1), case((1, 50), "flat", 0.0)],
    }
    figure = overlay_sheet(cases, title="run $1", note="synthetic data")
    assert [text.get_text() for text in figure.texts] == [r"run \$1", "synthetic data"]
    shown = [axes for axes in figure.axes if axes.images]
    labels = ["good_0\n0.900", "good_1\n0.900", "good_2\n0.900", "\\$bad\\$\n0.100", "flat\n0.000"]
    assert [axes.get_xlabel() for axes in shown] == labels
    assert [axes.get_ylabel() for axes in shown] == ["best", "", "", "worst", ""]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["truth", "prediction"]
    pixels = image_file.imread(save(figure, tmp_path / "sheet.png"))[..., :3]
    for strip in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert strip.min() == 1
    for axes in shown[:4]:  # after the layout every image keeps its aspect ratio
        height, width = axes.images[0].get_array().shape[:2]
        drawn = axes.get_window_extent()
        assert drawn.width / drawn.height == pytest.approx(width / height, rel=0.02)


def test_sheet_draws_contours_where_the_masks_end():
    """Contours of boxes from the first row and column are closed along the edge of the image."""
    (axes,) = overlay_sheet({"best": [case()]}).axes
    truth, prediction = axes.collections
    assert [to_hex(one.get_edgecolor()[0]) for one in (truth, prediction)] == [TRUTH_COLOUR, PREDICTION_COLOUR]
    for contour, expected in ((truth, [-0.5, -0.5, 39.5, 29.5]), (prediction, [19.5, 14.5, 79.5, 59.5])):
        (path,) = contour.get_paths()
        assert path.get_extents().extents == pytest.approx(expected)
        assert path.vertices[0] == pytest.approx(path.vertices[-1])


def test_sheet_shrinks_large_images():
    (axes,) = overlay_sheet({"best": [case((1500, 3000))]}).axes
    assert axes.images[0].get_array().shape == (240, 480, 3)
    assert axes.collections[0].get_paths()[0].get_extents().extents == pytest.approx([-0.5, -0.5, 239.5, 119.5])


def test_empty_masks_have_no_contour():
    full = case()
    empty = Case("empty", full.image, np.zeros_like(full.truth), np.zeros_like(full.truth), 1.0)
    (axes,) = overlay_sheet({"best": [empty]}).axes
    assert not axes.collections
    drawn = draw_overlay(empty.image, empty.truth, empty.prediction)
    np.testing.assert_array_equal(drawn, empty.image)


def test_neither_pyplot_nor_torch_is_imported():
    code = (
        "import sys, numpy as np; from skincancer.visualization.segmentation import *\n"
        "mask = np.ones((4, 4), bool); image = np.ones((4, 4, 3), np.uint8)\n"
        "overlay_sheet({'best': [Case('a', image, mask, mask, 1.0)]}); jaccard_histogram([1.0])\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_histogram_counts_every_image_once():
    jaccard = [0.0, 0.04, 0.3, 0.6499, 0.65, 0.6999, 0.7, 0.95, 1.0, 1.0]
    figure = jaccard_histogram(jaccard, title="t", note="synthetic data")
    assert [text.get_text() for text in figure.texts] == ["t", "synthetic data"]
    (axes,) = figure.axes
    height = {round(bar.get_x(), 2): bar.get_height() for bar in axes.patches}
    assert len(height) == 20
    assert {x: n for x, n in height.items() if n} == {0.0: 2, 0.3: 1, 0.6: 1, 0.65: 2, 0.7: 1, 0.95: 3}
    colour = {round(bar.get_x(), 2): to_hex(bar.get_facecolor()) for bar in axes.patches}
    assert len({colour[x] for x in colour if x < 0.65}) == len({colour[x] for x in colour if x >= 0.65}) == 1
    assert colour[0.6] != colour[0.65]
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([0.65, np.mean(jaccard)])
    texts = {text.get_text() for text in axes.get_legend().get_texts()}
    assert texts == {"mean 0.599", "below 0.65: 4 (40.0%)", "0.65 and above: 6 (60.0%)"}


@pytest.mark.parametrize("jaccard", [[], [0.5, np.nan], [1.2], [-0.1], [[0.5]]])
def test_malformed_jaccard_fails(jaccard):
    with pytest.raises(
        ValueError, match=r"jaccard (has shape .* expected \(N,\)|ranges from .* expected values in \[0, 1\])"
    ):
        jaccard_histogram(jaccard)


@pytest.mark.parametrize(("longer", "width"), [(60, 2), (800, 2), (1200, 3), (3000, 8)])
def test_line_width_of_overlay_depends_on_image_size(longer, width):
    shape = (longer // 2, longer)
    image = np.full((*shape, 3), 128, np.uint8)
    prediction = box(shape, longer // 8, longer // 4, longer // 3, longer // 2)
    column = painted(draw_overlay(image, None, prediction), YELLOW)[:, longer // 3]
    assert column.sum() == 2 * width  # upper and lower side
    lines = np.flatnonzero(column)
    assert abs(lines[:width].mean() - longer // 8) <= 0.5
    assert abs(lines[width:].mean() - (longer // 3 - 1)) <= 0.5


def test_overlay_changes_only_pixels_near_the_lines():
    given = case((60, 80))
    before = given.image.copy()
    drawn = draw_overlay(given.image, given.truth, given.prediction)
    assert (drawn.dtype, drawn.shape) == (np.uint8, given.image.shape)
    np.testing.assert_array_equal(given.image, before)
    lines = np.zeros((60, 80), dtype=bool)
    for mask in (given.truth, given.prediction):
        lines |= mask & ~ndimage.binary_erosion(mask)
    away = ndimage.distance_transform_edt(~lines) > 4.5
    np.testing.assert_array_equal(drawn[away], before[away])
    assert not painted(drawn, BLUE)[away].any()
    assert painted(drawn, BLUE).any()


def test_overlay_shows_truth_and_equal_prediction():
    mask = box((80, 80), 20, 20, 60, 60)
    drawn = draw_overlay(np.full((80, 80, 3), 200, np.uint8), mask, mask)
    profile = [tuple(pixel) for pixel in drawn[15:26, 40].tolist()]
    names = {BLUE: "b", YELLOW: "y", (0, 0, 0): "k", (200, 200, 200): "."}
    assert "".join(names[pixel] for pixel in profile) == "..kbyybk..."
    assert painted(draw_overlay(np.zeros((80, 80, 3), np.uint8), None, mask), BLUE).sum() == 0


def test_overlay_of_masks_that_reach_the_edge_runs_along_it():
    full = np.ones((50, 70), dtype=bool)
    yellow = painted(draw_overlay(np.full((50, 70, 3), 99, np.uint8), None, full), YELLOW)
    for side in (yellow[0], yellow[-1], yellow[:, 0], yellow[:, -1]):
        assert side.all()
    assert not yellow[5:-5, 5:-5].any()
    for shape in [(1, 300), (300, 1), (1, 1)]:
        drawn = draw_overlay(np.zeros((*shape, 3), np.uint8), np.ones(shape, bool), np.zeros(shape, bool))
        assert painted(drawn, BLUE).all()


def test_lines_are_round():
    """A single pixel becomes a disc with the width of the line, clipped at the edge of the image."""
    mask = np.zeros((1800, 2000), dtype=bool)
    mask[900, 700] = mask[0, 1999] = True
    yellow = painted(draw_overlay(np.zeros((1800, 2000, 3), np.uint8), None, mask), YELLOW)
    disc = [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]
    np.testing.assert_array_equal(yellow[898:903, 698:703], np.array(disc, dtype=bool))
    np.testing.assert_array_equal(yellow[:3, -3:], np.array(disc, dtype=bool)[2:, :3])
    assert yellow.sum() == 21 + 8


@pytest.mark.parametrize(
    ("image", "truth", "prediction", "message"),
    [
        (np.zeros((4, 5, 3)), None, np.ones((4, 5), bool), r"image is float64 .*; expected uint8 \(H, W, 3\)"),
        (np.zeros((4, 5), np.uint8), None, np.ones((4, 5), bool), "image is uint8 .*; expected uint8"),
        (np.zeros((4, 5, 3), np.uint8), None, np.ones((5, 4), bool), r"mask is bool \(5, 4\); expected bool \(4, 5\)"),
        (np.zeros((4, 5, 3), np.uint8), np.ones((4, 5)), np.ones((4, 5), bool), "mask is float64"),
    ],
)
def test_malformed_images_and_masks_fail(image, truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        draw_overlay(image, truth, prediction)
    with pytest.raises(ValueError, match=message):
        overlay_sheet({"best": [Case("a", image, prediction if truth is None else truth, prediction, 0.5)]})


def test_sheet_without_cases_fails():
    with pytest.raises(ValueError, match="cases has no image"):
        overlay_sheet({"best": [], "worst": []})
