"""Test resizing to the square and back on wide and tall images."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from skincancer.imaging.geometry import from_square, mapping, to_square

WIDE, TALL = (200, 100), (100, 200)


@pytest.mark.parametrize(
    ("width", "height", "size", "resize", "source", "target"),
    [
        (200, 100, 50, "stretch", (0, 0, 200, 100), (0, 0, 50, 50)),
        (100, 200, 50, "stretch", (0, 0, 100, 200), (0, 0, 50, 50)),
        (200, 100, 50, "pad", (0, 0, 200, 100), (0, 12, 50, 37)),  # 50×25, bars of 12 above and 13 below
        (100, 200, 50, "pad", (0, 0, 100, 200), (12, 0, 37, 50)),
        (80, 80, 50, "pad", (0, 0, 80, 80), (0, 0, 50, 50)),
        (10, 20, 50, "pad", (0, 0, 10, 20), (12, 0, 37, 50)),  # enlarged
        (1000, 3, 50, "pad", (0, 0, 1000, 3), (0, 24, 50, 25)),  # never less than a pixel
        (200, 100, 50, "crop", (50, 0, 150, 100), (0, 0, 50, 50)),
        (100, 200, 50, "crop", (0, 50, 100, 150), (0, 0, 50, 50)),
        (101, 200, 50, "crop", (0, 49, 101, 150), (0, 0, 50, 50)),
        (600, 450, 224, "crop", (75, 0, 525, 450), (0, 0, 224, 224)),
    ],
)
def test_boxes_match_manual_results(width, height, size, resize, source, target):
    assert mapping(width, height, size, resize) == (source, target)


def test_an_unknown_resize_is_a_programming_error():
    with pytest.raises(ValueError, match=r"'squeeze'.*stretch, pad or crop"):
        mapping(10, 10, 5, "squeeze")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", [WIDE, TALL, (90, 90)])
def test_pixels_match_the_functions_of_pillow(shape):
    image, bilinear = noise(*shape), Image.Resampling.BILINEAR
    references = {
        "stretch": image.resize((40, 40), bilinear),
        "pad": ImageOps.pad(image, (40, 40), bilinear, color="black"),
        "crop": ImageOps.fit(image, (40, 40), bilinear),
    }
    for resize, reference in references.items():
        assert np.array_equal(to_square(image, 40, resize), reference), resize


def paint(shape: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """Create a black image (H, W) with a white rectangle."""
    width, height = shape
    left, top, right, bottom = box
    canvas = np.zeros((height, width), dtype=np.uint8)
    canvas[top:bottom, left:right] = 255
    return canvas


def found_box(values: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(values.any(axis=1)), np.flatnonzero(values.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


# The rectangles are off-centre, not square, and inside the central square.
WIDE_BOX, TALL_BOX = (60, 20, 100, 40), (20, 60, 40, 100)


@pytest.mark.parametrize(
    ("shape", "box", "resize", "expected"),
    [
        (WIDE, WIDE_BOX, "stretch", (15, 10, 25, 20)),  # a quarter and a half
        (TALL, TALL_BOX, "stretch", (10, 15, 20, 25)),
        (WIDE, WIDE_BOX, "pad", (15, 17, 25, 22)),  # a quarter, 12 down
        (TALL, TALL_BOX, "pad", (17, 15, 22, 25)),
        (WIDE, WIDE_BOX, "crop", (5, 10, 25, 20)),  # 50 to the left, then a half
        (TALL, TALL_BOX, "crop", (10, 5, 20, 25)),
    ],
)
def test_a_painted_rectangle_goes_to_the_right_place_and_comes_back(shape, box, resize, expected):
    canvas = paint(shape, box)
    square = np.asarray(to_square(Image.fromarray(canvas).convert("RGB"), 50, resize))[..., 0] / np.float32(255)
    assert square.shape == (50, 50)
    assert found_box(square > 0.5) == expected
    back = from_square(square, *shape, resize)
    assert back.shape == canvas.shape
    assert back.dtype == np.float32
    assert 0 <= back.min() < back.max() <= 1
    assert found_box(back > 0.5) == pytest.approx(box, abs=2)
    intersection = ((back > 0.5) & (canvas > 0)).sum()
    assert intersection / ((back > 0.5) | (canvas > 0)).sum() > 0.9


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_values_outside_the_central_square_are_zero(shape):
    width, height = shape
    back = from_square(np.ones((50, 50), np.float32), width, height, "crop")
    seen = paint(shape, (50, 0, 150, 100) if shape == WIDE else (0, 50, 100, 150)) > 0
    assert (back[seen] == 1).all()
    assert (back[~seen] == 0).all()


@pytest.mark.parametrize("shape", [WIDE, TALL])
@pytest.mark.parametrize("inside", [0.0, 1.0])
def test_black_bars_do_not_leak_into_the_original(shape, inside):
    left, top, right, bottom = mapping(*shape, 50, "pad").target
    square = np.full((50, 50), 1 - inside, np.float32)
    square[top:bottom, left:right] = inside
    assert (from_square(square, *shape, "pad") == inside).all()


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_equal_sizes_change_nothing(resize):
    image = noise(50, 50)
    assert np.array_equal(to_square(image, 50, resize), image)
    values = np.asarray(image, np.float32)[..., 0] / 255
    assert np.allclose(from_square(values, 50, 50, resize), values, atol=1e-6)


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("shape", [(203, 97), (97, 203), (20, 31)])
def test_masks_stay_binary(shape, resize):
    mask = Image.fromarray(np.random.default_rng(1).choice([0, 255], (shape[1], shape[0])).astype(np.uint8))
    square = np.asarray(to_square(mask, 64, resize))
    assert square.shape == (64, 64)
    assert set(np.unique(square)) == {0, 255}
