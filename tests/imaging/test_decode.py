"""Test reading of image and mask files: colours, orientation, and errors."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from image_writers import quadrants, ramps, upright, write_png
from PIL import Image, ImageOps

from skincancer.imaging.decode import BadImage, decoding, read_image, read_mask
from skincancer.imaging.preprocessing import Preprocessing


def test_plain_rgb_is_read_unchanged(tmp_path: Path):
    quadrants().save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(image, quadrants())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str):
    # Cameras store the inverse of the transform that the EXIF standard requires of viewers.
    turn = Image.Transpose
    stored = {
        1: None, 2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270,
    }[orientation]  # fmt: skip
    picture = quadrants() if stored is None else quadrants().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    picture.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    assert upright(read_image(tmp_path / f"a.{suffix}"), tolerance=4)
    # Width and height are those of the upright image.
    assert Preprocessing(8, "stretch").apply(tmp_path / f"a.{suffix}", None).view[:2] == (32, 16)


def test_cmyk_jpeg(tmp_path: Path):
    quadrants().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    assert upright(read_image(tmp_path / "a.jpg"), tolerance=6)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_greyscale_gives_three_equal_channels(tmp_path: Path, suffix: str):
    grey = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[:, None], 16, axis=1)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    pixels = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    assert pixels.shape == (16, 16, 3)
    assert (pixels == pixels[..., :1]).all()
    assert abs(pixels[..., 0].astype(int) - grey).max() <= (3 if suffix == "jpg" else 0)


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_dropped_and_colours_stay(tmp_path: Path, alpha: int):
    picture = quadrants()
    picture.putalpha(alpha)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), quadrants())


@pytest.mark.parametrize("mode", ["P", "LA", "1", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str):
    picture = quadrants().quantize(8) if mode == "P" else quadrants().convert(mode)
    path = tmp_path / ("a.tiff" if mode == "YCbCr" else "a.png")
    picture.save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    image = read_image(path)
    assert image.mode == "RGB"
    if mode in ("P", "YCbCr"):
        assert upright(image, tolerance=3)
    else:
        reference = np.asarray(quadrants().convert("1" if mode == "1" else "L").convert("L"))
        assert (np.asarray(image) == reference[..., None]).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zero.jpg", b"", r"is empty \(0 bytes\)"),
        ("text.jpg", b"this is no image at all", "is not an image"),
        ("gone.jpg", None, "does not exist"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_files_that_are_no_images(tmp_path: Path, name: str, content: bytes | None, message: str, read):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImage, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(content[: int(len(content) * share)])
    read_image(tmp_path / f"whole.{suffix}")
    with pytest.raises(BadImage, match="cannot be decoded"):
        read_image(tmp_path / f"cut.{suffix}")


def write_tiff(path: Path, values: np.ndarray, **options) -> None:
    options = {"photometric": "rgb", **options}
    if values.shape[2] == 4:
        options["extrasamples"] = ["unassalpha"]
    tifffile.imwrite(path, values[..., 0] if values.shape[2] == 1 else values, **options)


def write_planes(path: Path, values: np.ndarray, **options) -> None:
    tifffile.imwrite(path, np.moveaxis(values, -1, 0).copy(), photometric="rgb", planarconfig="separate", **options)


WRITERS = {
    "grey.png": lambda path, values: write_png(path, values[..., :1]),
    "grey and alpha.png": lambda path, values: write_png(path, np.dstack([values[..., 0], np.full((32, 48), 65535, np.uint16)])),
    "rgb.png": write_png,
    "rgba.png": lambda path, values: write_png(path, np.dstack([values, np.full((32, 48), 65535, np.uint16)])),
    "grey.tif": lambda path, values: write_tiff(path, values[..., :1], photometric="minisblack"),
    "rgb.tif": write_tiff,
    "rgba.tif": lambda path, values: write_tiff(path, np.dstack([values, np.full((32, 48), 65535, np.uint16)])),
    "big endian.tif": lambda path, values: write_tiff(path, values, byteorder=">"),
    "deflate.tif": lambda path, values: write_tiff(path, values, compression="zlib"),
    "lzw.tif": lambda path, values: cv2.imwrite(str(path), values[..., ::-1].copy(), [cv2.IMWRITE_TIFF_COMPRESSION, 5]),
    "planes.tif": write_planes,
    "deflated planes.tif": lambda path, values: write_planes(path, values, compression="zlib"),
    "rgb.jp2": lambda path, values: cv2.imwrite(str(path), values[..., ::-1].copy(), [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]),
    "rgb.ppm": lambda path, values: path.write_bytes(b"P6 48 32 65535\n" + values.astype(">u2").tobytes()),
    "grey.pgm": lambda path, values: path.write_bytes(b"P5 48 32 65535\n" + values[..., 0].astype(">u2").tobytes()),
}  # fmt: skip


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", WRITERS)
def test_sixteen_bits_are_scaled_by_their_depth(tmp_path: Path, name: str, depth: int):
    values = ramps(depth)
    WRITERS[name](tmp_path / name, values)
    exact = np.rint(values.astype(np.float64) * 255 / (2**depth - 1))
    pixels = np.asarray(read_image(tmp_path / name))
    assert np.abs(pixels - (exact[..., :1] if name.startswith("grey") else exact)).max() == 0
    assert np.array_equal(pixels, read_image((tmp_path / name).read_bytes()))
    assert decoding(tmp_path / name) == "deep"


@pytest.mark.parametrize("name", ["rgb.png", "rgb.tif", "deflate.tif", "planes.tif", "deflated planes.tif", "rgb.ppm"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_of_sixteen_bits(tmp_path: Path, name: str, share: float):
    noise = np.random.default_rng(0).integers(0, 65536, (32, 48, 3), dtype=np.uint16)
    WRITERS[name](tmp_path / name, noise)
    content = (tmp_path / name).read_bytes()
    read_image(content)
    with pytest.raises(BadImage, match=r"cannot be decoded|is not an image"):
        read_image(content[: int(len(content) * share)])


def test_white_is_zero_in_a_tiff_of_sixteen_bits(tmp_path: Path):
    write_tiff(tmp_path / "a.tif", 4095 - ramps(12)[..., :1], photometric="miniswhite")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.tif"))[..., 0], np.rint(ramps(12)[..., 0] * (255 / 4095)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif", "planes"])
def test_exif_orientation_is_applied_to_sixteen_bits(tmp_path: Path, orientation: int, kind: str):
    values, path = ramps(16), tmp_path / f"a.{kind[:3].replace('pla', 'tif')}"
    if kind == "png":
        write_png(path, values, orientation)
    else:
        (write_planes if kind == "planes" else write_tiff)(path, values, extratags=[(274, "H", 1, orientation, True)])
    with Image.open(path) as image:
        # Pillow is right on the upper 8 bits, except of planes.
        upper = Image.fromarray((values >> 8).astype(np.uint8))
        upper.getexif()[0x0112] = orientation
        expected = np.asarray(
            ImageOps.exif_transpose(upper) if kind == "planes" else ImageOps.exif_transpose(image)
        ).astype(int)
    pixels = np.asarray(read_image(path)).astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 1


def test_a_depth_of_unknown_range_is_refused(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "integer.tiff")
    for name in ("float.tiff", "integer.tiff"):
        with pytest.raises(BadImage, match="32 bits per channel, of unknown range"):
            read_image(tmp_path / name)
    cmyk = np.dstack([ramps(16), ramps(16)[..., 0]])
    tifffile.imwrite(tmp_path / "cmyk.tif", cmyk, photometric="separated")
    with pytest.raises(BadImage, match="has mode CMYK with 16 bits per channel, which is not read"):
        read_image(tmp_path / "cmyk.tif")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.ppm", "a.jp2", "a.gif", "a.webp"])
def test_files_of_eight_bits_keep_their_cache(tmp_path: Path, name: str):
    quadrants().save(tmp_path / name)
    assert decoding(tmp_path / name) == ""


@pytest.mark.parametrize(("name", "options"), [
    ("a.jfif", {"format": "JPEG", "quality": 95}), ("a.jpe", {"format": "JPEG", "quality": 95}), ("a.avif", {"quality": 90}),
    ("a.webp", {"lossless": True}), ("a.jp2", {}), ("a.j2k", {}), ("a.gif", {}), ("a.ppm", {}),
])  # fmt: skip
def test_formats_of_phones_and_archives(tmp_path: Path, name: str, options: dict):
    quadrants().save(tmp_path / name, **options)
    assert upright(read_image(tmp_path / name), tolerance=12)


def test_an_animation_is_refused(tmp_path: Path):
    quadrants().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (32, 16))])
    with pytest.raises(BadImage, match="is an animation"):
        read_image(tmp_path / "a.gif")


@pytest.mark.parametrize("top", [1, 1000, 65535])
def test_colour_masks_of_sixteen_bits(tmp_path: Path, top: int):
    lesion = disc(48, 32)[..., None] * np.array([top, top, top], np.uint16)
    write_png(tmp_path / "m.png", lesion.astype(np.uint16))
    assert np.array_equal(np.asarray(read_mask(tmp_path / "m.png")), disc(48, 32) * np.uint8(255))


def disc(width: int = 40, height: int = 20) -> np.ndarray:
    """bool (H, W): an ellipse off the middle."""
    y, x = np.mgrid[:height, :width]
    return ((x - 15) / 10) ** 2 + ((y - 8) / 6) ** 2 < 1


def binary_masks() -> dict[str, Image.Image]:
    inside = disc()
    palette = Image.fromarray(inside.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    red = Image.fromarray(inside.astype(np.uint8), "P")
    red.putpalette([0, 0, 0, 128, 0, 0])  # how PASCAL VOC and labelme colour their first class
    return {
        "0/1": Image.fromarray(inside.astype(np.uint8)),
        "0/255": Image.fromarray(inside.astype(np.uint8) * 255),
        "one bit": Image.fromarray(inside),
        "soft edge": Image.fromarray(np.where(inside, 250, 9).astype(np.uint8)),
        "palette": palette,
        "red palette": red,
        "RGB": Image.fromarray(np.repeat(inside[..., None] * np.uint8(255), 3, axis=2)),
        "red RGB": Image.fromarray(inside[..., None] * np.array([255, 0, 0], np.uint8)),
        "RGBA": Image.fromarray(np.dstack([np.repeat(inside[..., None] * np.uint8(255), 3, 2), np.full((20, 40), 255, np.uint8)])),
        "16 bit": Image.fromarray(inside.astype(np.uint16) * 65535),
        "16 bit 0/1": Image.fromarray(inside.astype(np.uint16)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", binary_masks())
def test_masks_are_binarised(tmp_path: Path, kind: str):
    binary_masks()[kind].save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask), disc() * np.uint8(255))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_empty_mask_stays_empty_and_a_full_one_full(tmp_path: Path, dtype):
    for value, expected in ((0, 0), (np.iinfo(dtype).max, 255), (1, 255)):
        Image.fromarray(np.full((6, 9), value, dtype)).save(tmp_path / "m.png")
        assert (np.asarray(read_mask(tmp_path / "m.png")) == expected).all()


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_image_and_mask_are_resized_alike(tmp_path: Path, resize: str):
    inside = disc(80, 40)
    Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(tmp_path / "m.png")
    Image.fromarray(np.repeat(np.where(inside, 255, 0).astype(np.uint8)[..., None], 3, 2)).save(tmp_path / "i.png")
    pixels, truth, (width, height, _), _ = Preprocessing(40, resize).apply(tmp_path / "i.png", tmp_path / "m.png")
    assert (pixels.shape, pixels.dtype) == ((40, 40, 3), np.uint8)
    assert (truth.shape, truth.dtype) == ((40, 40), np.uint8)
    assert (width, height) == (80, 40)
    assert set(np.unique(truth)) == {0, 1}
    differing = (truth > 0) != (pixels[..., 0] > 127)
    assert differing.mean() < 0.03  # nearest against antialiased: along the edge alone


def test_without_a_mask_there_is_none(tmp_path: Path):
    quadrants().save(tmp_path / "i.png")
    pixels, truth, *_ = Preprocessing(8, "stretch").apply(tmp_path / "i.png", None)
    assert truth is None
    assert np.array_equal(pixels, quadrants().resize((8, 8), Image.Resampling.BILINEAR))


def test_a_mask_of_another_size_names_both(tmp_path: Path):
    quadrants().save(tmp_path / "i.png")
    Image.new("L", (16, 32)).save(tmp_path / "turned.png")
    with pytest.raises(BadImage, match=r"32×16 px but its mask .*turned\.png is 16×32 px"):
        Preprocessing(8, "stretch").apply(tmp_path / "i.png", tmp_path / "turned.png")


def test_a_bad_mask_is_named_itself(tmp_path: Path):
    quadrants().save(tmp_path / "i.png")
    (tmp_path / "mask.png").write_bytes(b"")
    with pytest.raises(BadImage, match=r"mask\.png"):
        Preprocessing(8, "stretch").apply(tmp_path / "i.png", tmp_path / "mask.png")
