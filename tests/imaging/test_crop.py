"""Test crop boxes, Otsu masks, and crops of images."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.metrics import jaccard_score

from skincancer.data.readers import demo
from skincancer.imaging.crop import Crop, crop_box
from skincancer.imaging.decode import BadImage, read_image, read_mask
from skincancer.imaging.mask_operations import otsu_mask
from skincancer.imaging.preprocessing import Preprocessing


def blank(height, width):
    return np.zeros((height, width), dtype=bool)


def test_box_is_a_square_with_its_margin_around_the_middle():
    mask = blank(100, 200)
    mask[40:60, 90:130] = True  # 40 wide, 20 high, its middle at (110, 50)
    assert crop_box(mask, 0.0) == (90, 30, 130, 70)
    assert crop_box(mask, 0.25) == (80, 20, 140, 80)


def test_box_over_an_edge_is_moved_and_one_longer_than_a_side_is_cut_to_it():
    mask = blank(100, 200)
    mask[0:10, 190:200] = True
    assert crop_box(mask, 0.5) == (180, 0, 200, 20)
    wide = blank(50, 200)
    wide[20:30, 50:150] = True
    assert crop_box(wide, 0.0) == (50, 0, 150, 50)


def test_box_of_one_pixel_of_a_full_and_of_an_empty_mask():
    mask = blank(30, 40)
    assert crop_box(mask, 0.2) is None
    mask[29, 39] = True
    assert crop_box(mask, 0.2) == (36, 26, 40, 30), "an eighth of 30 px at least"
    assert crop_box(np.ones((30, 40), dtype=bool), 0.2) == (0, 0, 40, 30)


@pytest.mark.parametrize("seed", range(20))
def test_box_always_holds_the_mask_and_stays_in_the_image(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, size=2)
    mask = rng.random((height, width)) < 0.05
    box = crop_box(mask, float(rng.random()))
    if box is None:
        assert not mask.any()
        return
    left, top, right, bottom = box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert mask[top:bottom, left:right].sum() == mask.sum()


def test_otsu_finds_a_dark_disc_and_not_the_frame():
    image = Image.new("RGB", (300, 200), (220, 180, 160))
    draw = ImageDraw.Draw(image)
    draw.polygon([(0, 0), (60, 0), (0, 60)], fill=(5, 5, 5))  # a corner of the dermoscope's frame
    draw.ellipse((100, 60, 180, 140), fill=(90, 60, 40))
    truth = Image.new("1", image.size)
    ImageDraw.Draw(truth).ellipse((100, 60, 180, 140), fill=1)
    assert jaccard_score(np.asarray(truth).ravel(), otsu_mask(image).ravel()) > 0.95


def test_otsu_mask_of_one_colour_is_empty_and_has_the_image_size():
    assert not otsu_mask(Image.new("RGB", (40, 30), (100, 80, 70))).any()
    large = Image.new("RGB", (1500, 900), (220, 180, 160))
    ImageDraw.Draw(large).ellipse((500, 300, 900, 700), fill=(90, 60, 40))
    mask = otsu_mask(large)
    assert mask.shape == (900, 1500)
    assert mask.sum() == pytest.approx(np.pi * 200**2, rel=0.03)


def test_otsu_of_a_lesion_at_every_border_is_the_lesion():
    row, column = np.mgrid[:90, :120]
    cross = (abs(row - 45) < 15) | (abs(column - 60) < 20)  # corners are skin
    pixels = np.full((90, 120, 3), (220, 180, 160), np.uint8)
    pixels[cross] = (90, 60, 50)
    mask = otsu_mask(Image.fromarray(pixels))
    assert all(edge.any() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert (mask & cross).sum() / (mask | cross).sum() > 0.95
    filling = np.full((90, 120, 3), (90, 60, 50), np.uint8)
    filling[30:60, 40:80] = (220, 180, 160)  # all corners too: dark all around, there is nothing else to be the lesion
    assert otsu_mask(Image.fromarray(filling)).any()


def test_otsu_masks_overlap_with_true_masks_on_the_demo(tiny_demo):
    index = demo.read(tiny_demo)
    jaccards = []
    for row in index.head(20).itertuples():
        truth = np.asarray(read_mask(tiny_demo / row.mask)) > 0
        jaccards.append(jaccard_score(truth.ravel(), otsu_mask(read_image(tiny_demo / row.image)).ravel()))
    assert np.median(jaccards) > 0.6


def painted(tmp_path, box=(20, 10, 60, 40)):
    """Write a grey image with a red lesion, and its mask."""
    image, mask = Image.new("RGB", (100, 80), (128, 128, 128)), Image.new("L", (100, 80))
    left, top, right, bottom = box
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=(255, 0, 0))
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    image.save(tmp_path / "a.png")
    mask.save(tmp_path / "a_mask.png")
    return tmp_path / "a.png", tmp_path / "a_mask.png"


def test_decoded_crop_shows_the_lesion_in_its_shape(tmp_path):
    image, mask = painted(tmp_path)
    square = Preprocessing(40, "stretch", crop=Crop("truth", 0.0)).apply(image, mask)
    assert (*square.view, square.source) == (100, 80, (20, 5, 60, 45), "truth")
    red = (square.pixels == (255, 0, 0)).all(axis=2)
    assert red.sum() == 40 * 30, "40 px square of the original at 40 px: nothing is rescaled"
    assert red[5:35].all()


def test_crop_is_the_box_of_the_mask_source(tmp_path):
    image, mask = painted(tmp_path)
    assert Preprocessing(8, "stretch", crop=Crop("auto", 0.0)).apply(image, None).source == "otsu"
    assert Preprocessing(8, "stretch", crop=Crop("auto", 0.0)).apply(image, mask).source == "truth"
    assert Preprocessing(8, "stretch", crop=Crop("otsu", 0.0)).apply(image, mask).source == "otsu"
    square = Preprocessing(8, "stretch", crop=Crop("run:abc", 0.0)).apply(image, (1, 2, 33, 34))
    assert (square.view.box, square.source) == ((1, 2, 33, 34), "run:abc")


def test_empty_mask_leaves_the_image_whole(tmp_path):
    image, mask = painted(tmp_path)
    Image.new("L", (100, 80)).save(mask)
    square = Preprocessing(8, "stretch", crop=Crop("truth", 0.2)).apply(image, mask)
    assert (square.view.box, square.source) == ((0, 0, 100, 80), "empty")
    assert Preprocessing(8, "stretch", crop=Crop("run:abc", 0.2)).apply(image, None).source == "empty"


def test_mask_of_another_size_names_both(tmp_path):
    image, mask = painted(tmp_path)
    Image.new("L", (80, 100), 255).save(mask)
    with pytest.raises(BadImage, match=r"100×80 px but its mask .*a_mask\.png is 80×100 px"):
        Preprocessing(8, "stretch", crop=Crop("truth", 0.2)).apply(image, mask)
