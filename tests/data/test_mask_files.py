"""Test which mask files are read, which noise is ignored, and which files are rejected."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skincancer.data.store import open_store
from skincancer.imaging.decode import BadImage, read_mask
from skincancer.imaging.preprocessing import Preprocessing


def disc(width: int = 160, height: int = 120) -> np.ndarray:
    """bool (H, W): an ellipse off the middle, about a seventh of the image."""
    y, x = np.mgrid[:height, :width]
    return ((x - 0.4 * width) / (0.22 * width)) ** 2 + ((y - 0.45 * height) / (0.2 * height)) ** 2 < 1


def grey(inside: np.ndarray, dark: int = 0, light: int = 255) -> Image.Image:
    return Image.fromarray(np.where(inside, light, dark).astype(np.uint8))


def colours(*values: tuple[int, int, int]) -> Image.Image:
    """The disc in the last colour on the first; a colour between is a bar over a tenth of the image, clear of the disc."""
    pixels = np.empty((120, 160, 3), np.uint8)
    pixels[:] = values[0]
    pixels[disc()] = values[-1]
    if len(values) > 2:
        pixels[:, -16:] = values[1]
    return Image.fromarray(pixels)


def palette(*values: tuple[int, int, int]) -> Image.Image:
    numbers = disc().astype(np.uint8) * (len(values) - 1)
    if len(values) > 2:
        numbers[:, -16:] = 1
    image = Image.fromarray(numbers, "P")
    image.putpalette([component for value in values for component in value])
    return image


def transparent(lesion: tuple[int, int, int]) -> Image.Image:
    """The disc in one colour on nothing, where the colour of nothing is white."""
    pixels = np.full((120, 160, 4), (255, 255, 255, 0), np.uint8)
    pixels[disc()] = (*lesion, 255)
    return Image.fromarray(pixels)


def two_valued() -> dict[str, Image.Image]:
    inside = disc()
    return {
        "0 and 100": grey(inside, 0, 100),
        "0 and 128": grey(inside, 0, 128),
        "0 and 7": grey(inside, 0, 7),
        "90 and 255": grey(inside, 90, 255),
        "dark red": colours((0, 0, 0), (64, 0, 0)),
        "skin on black": colours((0, 0, 0), (200, 140, 90)),
        "palette of dark red": palette((0, 0, 0), (64, 0, 0)),
        "white on nothing": transparent((255, 255, 255)),
        "grey with alpha": grey(inside).convert("LA"),
        "16 bit, 8 used": Image.fromarray(inside.astype(np.uint16) * 255),
        "32 bit": Image.fromarray(inside.astype(np.int32) * 70_000),
        "float": Image.fromarray(inside.astype(np.float32)),
    }


@pytest.mark.parametrize("kind", two_valued())
def test_any_two_values_are_a_mask(tmp_path: Path, kind: str) -> None:
    image = two_valued()[kind]
    path = tmp_path / ("m.tiff" if image.mode in ("F", "I") else "m.png")
    image.save(path)
    mask = read_mask(path)
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask), disc() * np.uint8(255))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_one_bit_files(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(disc()).save(tmp_path / f"m.{suffix}")
    with Image.open(tmp_path / f"m.{suffix}") as stored:
        assert stored.mode == "1"
    assert np.array_equal(np.asarray(read_mask(tmp_path / f"m.{suffix}")), disc() * np.uint8(255))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("value", [0, 1, 255])
def test_empty_and_full_masks_stay_so(tmp_path: Path, mode: str, value: int) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((9, 12), value * 257, np.uint16))
    elif mode == "P":
        image = Image.new("P", (12, 9))
        image.putpalette([value] * 3)
    else:
        image = Image.new("L", (12, 9), value)
        image = image.point(lambda level: 255 * (level > 0)).convert("1") if mode == "1" else image.convert(mode)
    image.save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as stored:
        assert stored.mode == mode
    assert (np.asarray(read_mask(tmp_path / "m.png")) == (255 if value else 0)).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [50, 75, 90, 95, 98, 100])
@pytest.mark.parametrize("box", [(64, 48), (160, 120)])
def test_compression_is_noise(tmp_path: Path, mode: str, quality: int, box: tuple[int, int]) -> None:
    grey(disc(*box)).convert(mode).save(tmp_path / "m.jpg", quality=quality)
    with Image.open(tmp_path / "m.jpg") as stored:
        assert len(np.unique(np.asarray(stored))) > 2
    mask = np.asarray(read_mask(tmp_path / "m.jpg"))
    assert set(np.unique(mask)) == {0, 255}
    assert ((mask > 0) != disc(*box)).sum() <= 4


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("method", [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_antialiased_edges_are_noise(tmp_path: Path, scale: int, method: Image.Resampling) -> None:
    soft = grey(disc(160 * scale, 120 * scale)).resize((160, 120), method)
    soft.save(tmp_path / "m.png")
    expected = np.asarray(soft) > 128  # the rule of isic-challenge-scoring
    assert 2 < len(np.unique(np.asarray(soft)))
    assert np.array_equal(np.asarray(read_mask(tmp_path / "m.png")) > 0, expected)


@pytest.mark.parametrize("value", range(120, 136))
def test_the_threshold_is_that_of_the_official_scorer(tmp_path: Path, value: int) -> None:
    """Checked against isic-challenge-scoring 5.6: values above 128 are lesion."""
    pixels = disc() * np.uint8(255)
    pixels[0, 0] = value
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert np.asarray(read_mask(tmp_path / "m.png"))[0, 0] == (255 if value > 128 else 0)


def test_a_nearly_full_mask_is_full(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for low in (254, 250, 200):
        Image.fromarray(rng.integers(low, 256, (30, 40), dtype=np.uint8)).save(tmp_path / "m.png")
        assert (np.asarray(read_mask(tmp_path / "m.png")) == 255).all()


def labels(*values: int, share: float = 0.1) -> Image.Image:
    """The disc in the last value on the first; the others are bars at the right, each over a share of the image."""
    pixels = np.where(disc(), values[-1], values[0]).astype(np.uint8)
    width = max(1, round(160 * share))
    for number, value in enumerate(values[1:-1], start=1):
        pixels[:, 160 - width * number : 160 - width * (number - 1)] = value
    return Image.fromarray(pixels)


def photograph(mode: str) -> Image.Image:
    rng = np.random.default_rng(0)
    pixels = np.where(disc()[..., None], (110, 70, 60), (215, 170, 150)) + rng.normal(0, 12, (120, 160, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def not_masks() -> dict[str, tuple[Image.Image, str]]:
    return {
        "classes 0, 1, 2": (labels(0, 1, 2), "0 and 2: also 1;"),
        "a rare class": (labels(0, 1, 2, 3, share=0.004), "0 and 3: also 1, 2;"),
        "classes 0 to 9": (labels(*range(10), share=0.05), "0 and 9: also 1, 2, 3"),
        "classes 0, 4, 5": (labels(0, 4, 5), "also 4;"),
        "0, 128, 255": (labels(0, 128, 255), "0 and 255: also 128;"),
        "0, 1, 255": (labels(0, 1, 255), "also 1;"),
        "0, 1, 2, 255": (labels(0, 1, 2, 255), "also 1, 2;"),
        "two light greys": (grey(disc(), 160, 255), "also 160;"),
        "16-bit classes": (Image.fromarray(np.asarray(labels(0, 1, 2)).astype(np.uint16)), "0 and 2: also 1;"),
        "red and green": (colours((0, 0, 0), (128, 0, 0), (0, 128, 0)), "more colours than black and one other"),
        "red on white": (colours((255, 255, 255), (255, 0, 0)), "more colours than black and one other"),
        "red on white, palette": (palette((255, 255, 255), (255, 0, 0)), "more colours than black and one other"),
        "PASCAL VOC": (palette((0, 0, 0), (224, 224, 192), (128, 0, 0)), "more colours than black and one other"),
        "red on nothing and white": (colours((0, 0, 0), (255, 255, 255), (255, 0, 0)), "more colours"),
        "a photograph": (photograph("RGB"), "more colours than black and one other"),
        "a grey photograph": (photograph("L"), "contains more values than 0 and"),
        "below zero": (Image.fromarray(disc().astype(np.int32) - 1), "below 0 or not finite"),
        "not a number": (Image.fromarray(np.where(disc(), 1, np.nan).astype(np.float32)), "below 0 or not finite"),
    }


@pytest.mark.parametrize("kind", not_masks())
def test_more_than_two_values_are_no_mask(tmp_path: Path, kind: str) -> None:
    image, message = not_masks()[kind]
    path = tmp_path / ("m.tiff" if image.mode in ("F", "I") else "m.png")
    image.save(path)
    with pytest.raises(BadImage, match=message) as caught:
        read_mask(path)
    assert "write the lesion as 255 and the rest as 0" in str(caught.value)


def test_noise_of_many_colours_is_no_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(BadImage, match="more colours than black"):
        read_mask(tmp_path / "m.png")


def test_class_map_is_a_bad_row_that_names_image_and_mask(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (160, 120), (200, 150, 130)).save(tmp_path / f"{name}.jpg")
        labels(0, 1, 2).save(tmp_path / f"{name}_m.png")
    grey(disc()).save(tmp_path / "a_m.png")
    index = pd.DataFrame({"image_id": ["a", "b"], "image": ["a.jpg", "b.jpg"], "mask": ["a_m.png", "b_m.png"]})
    store = open_store(index, tmp_path, tmp_path / "cache", Preprocessing(16, "stretch"), masks=True, jobs=1)
    assert store.bad["image_id"].tolist() == ["b"]
    for text in (str(tmp_path / "b.jpg"), str(tmp_path / "b_m.png"), "0 and 2: also 1"):
        assert text in store.bad["error"].iloc[0]
    assert store.masks[0].any()


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("box", [(200, 40), (40, 200), (37, 1), (1, 37), (1, 1)])
@pytest.mark.parametrize("value", [0, 255])
def test_empty_and_full_masks_of_any_shape_come_through_the_square(
    tmp_path: Path, resize: str, box: tuple[int, int], value: int
) -> None:
    Image.new("RGB", box, (255, 255, 255)).save(tmp_path / "i.png")
    Image.new("L", box, value).save(tmp_path / "m.png")
    pixels, truth, (width, height, _), _ = Preprocessing(24, resize).apply(tmp_path / "i.png", tmp_path / "m.png")
    assert truth is not None
    assert (width, height) == box
    assert set(np.unique(truth)) <= {0, 1}
    # the image is white all over, so that it shows which part of the square it takes
    assert np.array_equal(truth > 0, (pixels[..., 0] > 0) & (value > 0))


def test_nearest_takes_the_pixel_under_the_centre(tmp_path: Path) -> None:
    inside = np.random.default_rng(0).random((90, 150)) > 0.5
    Image.new("RGB", (150, 90)).save(tmp_path / "i.png")
    grey(inside).save(tmp_path / "m.png")
    truth = Preprocessing(30, "stretch").apply(tmp_path / "i.png", tmp_path / "m.png").mask
    assert np.array_equal(truth, inside[1::3, 2::5])  # centres of 3 × 5 px each
