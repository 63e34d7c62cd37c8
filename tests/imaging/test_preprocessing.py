"""Preprocessing: the recipe names every choice, and a map on the square returns to the pixels that the square shows."""

import pickle
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from skincancer.errors import ConfigError
from skincancer.imaging.crop import Crop
from skincancer.imaging.geometry import from_square
from skincancer.imaging.preprocessing import Preprocessing, View
from skincancer.schema.data import DataConfig


def test_the_config_gives_whole_images_unless_a_mask_source_is_named():
    data = asdict(DataConfig(size=32, resize="pad", clean=["hair", "frame"], crop=True, crop_margin=0.3))
    assert Preprocessing.from_config(data) == Preprocessing(32, "pad", ("hair", "frame"))
    assert Preprocessing.from_config(data, "otsu") == Preprocessing(32, "pad", ("hair", "frame"), Crop("otsu", 0.3))
    with pytest.raises(ConfigError, match="Did you mean 'hair'"):
        Preprocessing.from_config(data | {"clean": ["hiar"]})


def test_every_choice_is_in_the_recipe():
    plain = Preprocessing(32, "pad")
    others = [Preprocessing(33, "pad"), Preprocessing(32, "crop"), Preprocessing(32, "pad", ("hair",))]
    others += [
        Preprocessing(32, "pad", crop=Crop(masks, margin))
        for masks, margin in (("otsu", 0.1), ("truth", 0.1), ("otsu", 0.2))
    ]
    recipes = [str(preprocessing.recipe()) for preprocessing in (plain, *others)]
    assert plain.recipe() == {"size": 32, "resize": "pad"}
    assert len(set(recipes)) == len(recipes)
    assert [pickle.loads(pickle.dumps(other)) for other in others] == others, "sent to worker processes"


def test_squares_that_show_boxes():
    assert not Preprocessing(8, "crop", ("hair",)).shows_boxes
    assert Preprocessing(8, "stretch", ("hair", "frame")).shows_boxes
    assert Preprocessing(8, "stretch", crop=Crop("otsu", 0.1)).shows_boxes


def test_otsu_crops_ignore_the_true_mask(tmp_path):
    pixels = np.full((40, 60, 3), 220, np.uint8)
    pixels[10:20, 30:40] = 40
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "mask.png").write_bytes(b"no image")
    preprocessing = Preprocessing(16, "stretch", crop=Crop("otsu", 0.0))
    with_mask, without = (preprocessing.apply(tmp_path / "a.png", mask) for mask in (tmp_path / "mask.png", None))
    assert with_mask.view == without.view
    left, top, right, bottom = without.view.box
    assert left <= 30 < 40 <= right
    assert top <= 10 < 20 <= bottom


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_restored_probabilities_lie_in_the_box_of_the_view(resize):
    values = np.random.default_rng(0).random((24, 24), dtype=np.float32)
    preprocessing = Preprocessing(24, resize)
    restored = preprocessing.restore(values, View(50, 40, (10, 5, 40, 25)))
    assert restored.shape == (40, 50)
    inside = from_square(values, 30, 20, resize).clip(0, 1)
    assert np.array_equal(restored[5:25, 10:40], inside)
    assert restored.sum() == pytest.approx(inside.sum(), rel=1e-6), "0 outside the box"
    whole = preprocessing.restore(values, View(50, 40, (0, 0, 50, 40)))
    assert np.array_equal(whole, from_square(values, 50, 40, resize).clip(0, 1))
