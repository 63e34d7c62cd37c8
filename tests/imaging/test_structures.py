"""Each detector of differential structures finds its synthetic structures, and no other detector does."""

import math

import numpy as np
import pytest
from lesion_shapes import COLUMNS, ROWS, abcd, disc, painted
from PIL import Image
from scipy import ndimage

from skincancer import prepare
from skincancer.imaging.features.structures import find_spots, find_structures, structure_features

LESION, DARKER = 55.0, 35.0
PRESENT = ("network", "structureless", "dots", "globules", "streaks")


def drawn(dark=None, mask=None, by=LESION - DARKER):
    """Return CIELAB of a lesion on skin, darker where `dark` is, of a weight 0 to 1."""
    mask = disc() if mask is None else mask
    light = np.where(mask, LESION, 80.0) - (0 if dark is None else by * dark)
    return np.stack([ndimage.gaussian_filter(light, 0.5), np.full_like(light, 10), np.full_like(light, 15)], axis=-1)


def rough(seed=0):
    """Return grain, which makes no area structureless and is too fine for other structures."""
    noise = np.random.default_rng(seed).normal(size=(256, 256))
    return ndimage.gaussian_filter(noise, 1.5) * 12


def detect(lab, mask=None):
    features = structure_features(disc() if mask is None else mask, lab)
    return {name for name in PRESENT if features[f"abcd_structure_{name}_present"]}, features


def spots(radius, *places):
    return np.any([(ROWS - row) ** 2 + (COLUMNS - column) ** 2 <= radius**2 for row, column in places], axis=0)


def bar(row, column, length, degrees, width=2.0):
    """Return a bar by its centre, with degrees from the row axis."""
    turn = math.radians(degrees)
    along = (ROWS - row) * math.cos(turn) + (COLUMNS - column) * math.sin(turn)
    across = -(ROWS - row) * math.sin(turn) + (COLUMNS - column) * math.cos(turn)
    return (abs(along) <= length / 2) & (abs(across) <= width / 2)


def test_plain_lesion_is_structureless_only():
    present, features = detect(drawn())
    assert present == {"structureless"}
    assert features["abcd_structure_structureless_share"] > 0.7
    assert features["abcd_structure_count"] == 1


def test_grain_is_no_structure():
    lab = drawn()
    lab[..., 0] += rough()
    present, features = detect(lab)
    assert features["abcd_structure_structureless_share"] < 0.1
    assert "streaks" not in present
    assert features["abcd_structure_dots"] == 0


def test_three_dots_or_one_globule_are_present():
    places = [(110, 110), (128, 140), (150, 120)]
    for count, is_present in ((2, False), (3, True)):
        present, features = detect(drawn(spots(1.5, *places[:count])))
        assert ("dots" in present) is is_present
        assert (features["abcd_structure_dots"], features["abcd_structure_globules"]) == (count, 0)
    present, features = detect(drawn(spots(4, (128, 128))))
    assert "globules" in present
    assert (features["abcd_structure_dots"], features["abcd_structure_globules"]) == (0, 1)


def test_spot_radius_equals_the_synthetic_radius():
    for radius in (2, 3, 4, 5):
        points, measured = find_spots(drawn(spots(radius, (128, 120)))[..., 0], disc(), 6)
        assert points == pytest.approx(np.array([[128, 120]]), abs=radius / 2)
        assert measured == pytest.approx([radius], abs=1)


def test_faint_spots_lines_and_outside_spots_are_not_found():
    assert len(find_structures(disc(), drawn(spots(3, (128, 128)), by=3)).globules) == 0
    assert len(find_structures(disc(), drawn(bar(128, 128, 60, 40))).globules) == 0
    outside = find_structures(disc(), drawn(spots(3, (20, 20))))
    assert len(outside.dots) == len(outside.globules) == 0


def test_nets_are_networks_and_single_holes_or_lines_are_not():
    net = ((ROWS % 8 < 2) | (COLUMNS % 8 < 2)).astype(float)
    present, features = detect(drawn(net * disc(), by=8))
    assert "network" in present
    assert features["abcd_structure_network_share"] > 0.5
    half = detect(drawn(net * disc() * (COLUMNS < 128), by=8))[1]["abcd_structure_network_share"]
    assert half == pytest.approx(features["abcd_structure_network_share"] / 2, abs=0.12)
    for other in (-1.0 * spots(3, (100, 100), (100, 156), (156, 128)), (ROWS % 8 < 2) * disc()):
        assert "network" not in detect(drawn(other, by=8))[0]


def test_three_outward_streaks_are_present():
    angles = np.radians([10, 100, 190, 280])
    ends = [(128 + 60 * math.cos(angle), 128 + 60 * math.sin(angle), math.degrees(angle)) for angle in angles]
    radial = [bar(row, column, 12, degrees) for row, column, degrees in ends]
    for count, is_present in ((2, False), (3, True), (4, True)):
        present, features = detect(drawn(np.any(radial[:count], axis=0)))
        assert ("streaks" in present) is is_present
        assert features["abcd_structure_streaks"] == count
    along = np.any([bar(row, column, 12, degrees + 90) for row, column, degrees in ends], axis=0)
    assert detect(drawn(along))[1]["abcd_structure_streaks"] == 0
    hairs = np.any([bar(row, column, 90, degrees) for row, column, degrees in ends], axis=0)
    assert detect(drawn(hairs))[1]["abcd_structure_streaks"] == 0, "lines that continue outside the lesion are hairs"


def test_all_structures_are_counted_in_the_score():
    angles = np.radians([10, 100, 190])
    ends = [(128 + 60 * math.cos(angle), 128 + 60 * math.sin(angle), math.degrees(angle)) for angle in angles]
    streaks = np.any([bar(row, column, 12, degrees) for row, column, degrees in ends], axis=0)
    net = ((ROWS % 8 < 2) | (COLUMNS % 8 < 2)) & (abs(ROWS - 100) < 20) & (abs(COLUMNS - 128) < 30)
    seeds = spots(1.5, (150, 110), (150, 128), (150, 146)) | spots(4, (165, 128))
    lab = drawn(0.4 * net + 1.0 * (streaks | seeds))
    assert detect(lab)[0] == set(PRESENT)
    assert detect(lab)[1]["abcd_structure_count"] == 5
    plain = painted(disc())
    score = abcd(plain, disc())
    assert score["abcd_tds"] == score["abcd_tds_without_d"] + 0.5 * score["abcd_structure_count"]


@pytest.mark.parametrize(
    "mask", [np.ones((256, 256), bool), disc(1), disc(300), (ROWS < 2) & (COLUMNS < 3), disc(60) & (ROWS % 3 == 0)]
)
def test_degenerate_masks_have_features(mask):
    lab = drawn(mask=mask)
    lab[..., 0] += rough()
    values = structure_features(mask, lab).values()
    assert all(math.isfinite(value) for value in values)


def test_structure_sheet_shows_the_structures(tiny_demo, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    arguments = ["demo", f"--data.root={tiny_demo}", "--data.size=32", "--show=structures", f"--out={path}"]
    assert prepare.main(arguments) == 2
    assert "--show structures requires the features. Use --features" in " ".join(capsys.readouterr().err.split())
    assert prepare.main([*arguments, "--features", "--data.masks=run:abc"]) == 2
    assert "--data.masks is run:abc; expected truth, otsu or auto" in " ".join(capsys.readouterr().err.split())
    assert prepare.main([*arguments, "--features", "--data.masks=truth"]) == 0
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert (np.abs(pixels - (0, 229, 255)).max(axis=2) < 40).sum() > 200, "outlines of the masks"
    assert pixels.shape[0] > 1000
