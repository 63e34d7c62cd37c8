"""Test reading of HEIC and DICOM files, which need extras."""

import io
from pathlib import Path

import numpy as np
import pillow_heif
import pydicom
import pytest
from image_writers import BLUE, GREEN, RED, quadrants, ramps, upright, write_dicom
from PIL import Image, ImageOps

from skincancer.imaging import decode
from skincancer.imaging.decode import BadImage, MissingExtra, count_pixels, decoding, read_image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pillow_heif.from_pillow(quadrants()).save(tmp_path / "plain.heic", quality=95)
    assert upright(read_image(tmp_path / "plain.heic"), tolerance=12)
    # The writer turns the pixels itself.
    pillow_heif.register_heif_opener()
    quadrants().save(tmp_path / "a.heic", exif=exif.tobytes(), quality=95)
    expected = quadrants()
    expected.getexif()[0x0112] = orientation
    image = read_image(tmp_path / "a.heic")
    assert image.size == ImageOps.exif_transpose(expected).size
    assert np.abs(np.asarray(image).astype(int) - np.asarray(ImageOps.exif_transpose(expected))).mean() < 12
    assert count_pixels(tmp_path / "a.heic") == 32 * 16
    assert decoding(tmp_path / "a.heic") == "extra"


def test_dicom(tmp_path: Path):
    path = tmp_path / "a.dcm"
    colour = np.asarray(quadrants())
    write_dicom(path, colour, "RGB")
    assert np.array_equal(read_image(path), colour)
    assert np.array_equal(read_image(path.read_bytes()), colour)
    assert count_pixels(path) == 32 * 16
    write_dicom(path, np.asarray(quadrants().convert("YCbCr")), "YBR_FULL")
    assert upright(read_image(path), tolerance=3)
    write_dicom(path, ramps(16), "RGB")
    assert np.array_equal(read_image(path), np.rint(ramps(16) / 257))
    # Twelve bits are known from the header, although no value uses them all.
    write_dicom(path, ramps(10)[..., 0], "MONOCHROME2", BitsStored=12, HighBit=11)
    grey = np.rint(ramps(10)[..., 0] * (255 / 4095))
    assert np.array_equal(np.asarray(read_image(path))[..., 0], grey)
    write_dicom(path, ramps(10)[..., 0], "MONOCHROME1", BitsStored=12, HighBit=11)
    assert np.array_equal(np.asarray(read_image(path))[..., 2], 255 - grey)


def test_compressed_dicom(tmp_path: Path):
    stream = io.BytesIO()
    quadrants().save(stream, "jpeg", quality=95)
    tags = {"PixelData": pydicom.encaps.encapsulate([stream.getvalue()])}
    write_dicom(tmp_path / "a.dcm", np.asarray(quadrants()), "YBR_FULL_422", pydicom.uid.JPEGBaseline8Bit, **tags)
    assert upright(read_image(tmp_path / "a.dcm"), tolerance=12)
    write_dicom(tmp_path / "a.dcm", np.asarray(quadrants()), "RGB", pydicom.uid.JPEGLSLossless, **tags)
    with pytest.raises(BadImage, match=r"^cannot be decoded: [^\n]*JPEG-LS[^\n]*; export it as PNG$"):
        read_image(tmp_path / "a.dcm")


def test_dicom_of_a_palette(tmp_path: Path):
    colours = np.array([RED, GREEN, BLUE])
    indices = (np.asarray(quadrants())[:, :, None] == colours).all(axis=3).argmax(axis=2).astype(np.uint8)
    tags = {}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (colours[:, channel] * 257).astype(np.uint16).tobytes()
    write_dicom(tmp_path / "a.dcm", indices, "PALETTE COLOR", **tags)
    assert np.array_equal(read_image(tmp_path / "a.dcm"), quadrants())


@pytest.mark.parametrize(("tags", "message"), [
    ({"NumberOfFrames": 2, "PixelData": bytes(2 * 16 * 32 * 3)}, "contains 2 frames; expected one image"),
    ({"PixelRepresentation": 1}, "contains signed values"),
    ({"PixelData": b"12"}, "cannot be decoded"),
])  # fmt: skip
def test_dicom_that_is_no_photograph_is_refused(tmp_path: Path, tags: dict, message: str):
    write_dicom(tmp_path / "a.dcm", np.asarray(quadrants()), "RGB", **tags)
    with pytest.raises(BadImage, match=message):
        read_image(tmp_path / "a.dcm")


def test_dicom_without_pixels_is_refused(tmp_path: Path):
    write_dicom(tmp_path / "a.dcm", np.asarray(quadrants()), "RGB")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    del dataset.PixelData
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(BadImage, match="contains no image"):
        read_image(tmp_path / "a.dcm")


@pytest.mark.parametrize("extra", ["heic", "dicom"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch, extra: str):
    path = tmp_path / f"a.{extra}"
    if extra == "heic":
        pillow_heif.from_pillow(quadrants()).save(path)
        # Another test may have registered the reader.
        monkeypatch.setattr(Image, "ID", [known for known in Image.ID if known != "HEIF"])
    else:
        write_dicom(path, np.asarray(quadrants()), "RGB")
    monkeypatch.setattr(decode, "is_installed", lambda _: False)
    with pytest.raises(
        MissingExtra, match=rf"^{path} needs the extra {extra}; install it: pip install 'skincancer\[{extra}\]'"
    ):
        read_image(path)
    with pytest.raises(MissingExtra, match=r"^needs the extra"):
        read_image(path.read_bytes())
