"""Test the feature table: its cache, its mask sources, and its command line."""

import numpy as np
import pandas as pd
import pytest
from conftest import write
from PIL import Image

from skincancer import prepare
from skincancer.data import feature_table
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.feature_table import FeatureTable, measure, open_features
from skincancer.data.index import load_index
from skincancer.errors import DataError
from skincancer.imaging.cleaning.frame import frame_box
from skincancer.imaging.cleaning.illumination import adaptive_sigmoid
from skincancer.imaging.crop import find_mask
from skincancer.imaging.decode import BadImage, read_image
from skincancer.imaging.features.families import bring_to_working_size, feature_names, image_features, learned_names
from skincancer.imaging.mask_operations import otsu_mask
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.inference.model import SegmenterMasks, mask_source
from skincancer.schema.data import DataConfig


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Create six images: four with masks (one empty), one without a mask, and an unreadable one."""
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "few"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(180, 220, (30, 40, 3), dtype=np.uint8)
        pixels[10:20, 12:30] = rng.integers(60, 100, (10, 18, 3))
        Image.fromarray(pixels).save(root / f"i{number}.png")
        mask = np.zeros((30, 40), dtype=np.uint8)
        mask[9:21, 11:31] = 255 * (number != 2)
        Image.fromarray(mask).save(root / f"m{number}.png")
    (root / "i5.png").write_bytes(b"no image")
    rows = [f"i{number}.png,{f'm{number}.png' if number != 4 else ''},{number % 2}" for number in range(6)]
    write(root / "index.csv", "image,mask,diagnosis", *rows)
    return root


def opened(root, masks="auto", clean=(), **options):
    entry = catalog_entry("csv")
    index, _ = load_index(entry, root)
    source = mask_source(DataConfig(dataset="csv", root=str(root), masks=masks), None)
    return open_features(index, root, entry, source, clean, jobs=1, **options)


def test_table_has_one_row_per_image_and_is_cached(few, monkeypatch):
    features = opened(few)
    table = features.table.set_index("image_id")
    assert list(table["masks"]) == ["truth", "truth", "empty", "truth", "otsu", ""]
    assert table.loc["i5", "error"].endswith("i5.png is not an image")
    assert list(table["mask_empty"])[:5] == [0, 0, 1, 0, 0]
    assert table.loc[["i2", "i5"], feature_names()].isna().all(axis=None)
    assert (table["width"].to_list(), table["height"].to_list()) == ([40] * 5 + [0], [30] * 5 + [0])
    expected = measure(few / "i0.png", few / "m0.png", "truth")
    for name in feature_names():
        # The file keeps all digits of float32.
        assert np.array_equal(table.loc["i0", name], np.float32(expected[name]), equal_nan=True)
    monkeypatch.setattr(feature_table, "measure", None)  # what is measured again would fail
    again = opened(few)
    assert again.folder == features.folder
    pd.testing.assert_frame_equal(again.table, features.table)
    assert list(again.columns(["lbp", "abcd"])) == learned_names(["lbp", "abcd"])


def test_other_masks_or_files_change_the_key(few):
    by_truth, by_otsu = opened(few), opened(few, "otsu")
    assert by_truth.folder != by_otsu.folder
    assert set(by_otsu.table["masks"]) == {"otsu", ""}
    picture = read_image(few / "i4.png")
    expected = image_features(bring_to_working_size(picture, otsu_mask(picture)))
    assert by_otsu.table.set_index("image_id").loc["i4", "abcd_diameter_px"] == np.float32(expected["abcd_diameter_px"])
    Image.new("RGB", (40, 30), (200, 150, 140)).save(few / "i0.png")
    assert opened(few).folder != by_truth.folder


def test_diameter_is_in_mm_if_the_scale_is_known(few):
    without = opened(few)
    assert without.table["abcd_diameter_mm"].isna().all()
    lines = (few / "index.csv").read_text().splitlines()
    scales = ["mm_per_px", "0.05", "", "0.05", "0.1", "unknown", ""]
    write(few / "index.csv", *(f"{line},{scale}" for line, scale in zip(lines, scales, strict=True)))
    features = opened(few)
    assert features.folder != without.folder
    table = features.table.set_index("image_id")
    assert table.loc["i0", "abcd_diameter_mm"] == pytest.approx(0.05 * table.loc["i0", "abcd_diameter_px"], rel=1e-6)
    assert table.loc["i3", "abcd_diameter_mm"] == pytest.approx(0.1 * table.loc["i3", "abcd_diameter_px"], rel=1e-6)
    assert table.loc[["i1", "i2", "i4", "i5"], "abcd_diameter_mm"].isna().all()
    assert features.columns(["abcd"]).equals(without.columns(["abcd"])), "a scale changes no model input"


@pytest.mark.parametrize("scale", ["0", "-0.1", "wide", "inf"])
def test_wrong_scale_is_rejected(few, scale):
    write(few / "index.csv", "image,diagnosis,mm_per_px", f"i0.png,a,{scale}")
    with pytest.raises(
        DataError, match=rf"mm_per_px of image i0 is '{scale}'; expected the size of a pixel in mm, above 0"
    ):
        opened(few)


def test_features_are_measured_on_cleaned_images(few):
    plain, cleaned = opened(few), opened(few, clean=["contrast"])
    assert cleaned.folder != plain.folder
    lesion = find_mask(read_image(few / "i0.png"), read_image(few / "i0.png"), (0, 0, 40, 30), few / "m0.png", "truth")[
        0
    ]
    darkened = Image.fromarray(adaptive_sigmoid(np.asarray(read_image(few / "i0.png"))))
    expected = image_features(bring_to_working_size(darkened, lesion), ["colour"])
    row = cleaned.table.set_index("image_id").loc["i0"]
    for name in feature_names(["colour"]):
        assert np.array_equal(row[name], np.float32(expected[name]), equal_nan=True)
    assert not cleaned.columns(["colour"]).equals(plain.columns(["colour"]))


def test_pixels_removed_by_frame_change_no_feature(tmp_path):
    bright = np.full((40, 60, 3), 200, np.uint8)
    bright[15:25, 25:35] = 90
    framed = np.zeros((60, 80, 3), np.uint8)
    framed[10:50, 10:70] = bright
    masks = []
    for name, pixels in (("inner", bright), ("framed", framed)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        masks.append((pixels[..., 0] == 90).astype(np.uint8) * 255)
        Image.fromarray(masks[-1]).save(tmp_path / f"{name}_mask.png")
    assert frame_box(framed) == (10, 10, 70, 50)
    inner = measure(tmp_path / "inner.png", tmp_path / "inner_mask.png", "truth")
    by_truth = measure(tmp_path / "framed.png", tmp_path / "framed_mask.png", "truth", steps=["frame"])
    by_run = measure(tmp_path / "framed.png", masks[1] > 0, "run:x", steps=["frame"])
    for row in (by_truth, by_run):
        assert (row["width"], row["height"]) == (80, 60)
        assert all(np.array_equal(row[name], inner[name], equal_nan=True) for name in feature_names())


def test_killed_build_leaves_no_complete_table(few, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_table, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(few)
    assert opened(few).table["mask_empty"].notna().sum() == 5


def test_missing_true_masks_are_rejected(few):
    with pytest.raises(DataError, match=r"data.masks is truth, but 1 of 6 images of csv have no mask, such as i4"):
        opened(few, "truth")


def test_masks_of_a_segmenter(few):
    """The predicted mask is the left half of every image."""

    class Segmenter:
        def __init__(self):
            self.digest, self.preprocessing, self.batch_size = "0123", Preprocessing(32, "stretch"), 4
            self.settings = {"data": {"dataset": "demo"}}

        def predict(self, squares):
            return type("ModelOutput", (), {"lesion": np.ones((len(squares), 32, 32), dtype=np.float32)})

        def mask(self, lesion, view):
            return np.arange(view.width)[None].repeat(view.height, axis=0) < view.width // 2

    split = pd.DataFrame({"image_id": [], "lesion_id": [], "role": []}, dtype=str)
    index, _ = load_index(catalog_entry("csv"), few)
    masks = SegmenterMasks(Segmenter(), split)
    table = open_features(index, few, catalog_entry("csv"), masks, jobs=1).table.set_index("image_id")
    assert list(table["masks"]) == ["run:0123"] * 5 + [""]
    assert table.loc["i0", "abcd_diameter_by_longer_side"] == pytest.approx(np.hypot(127, 191) / 256, abs=0.01)


def test_failed_prediction_of_the_segmenter_is_reported(few):
    """A missing mask after failed cleaning is not an empty mask."""
    with pytest.raises(BadImage, match=r"cannot be cleaned as the segmenter's images were, so it has no mask"):
        measure(few / "i0.png", None, "run:0123")


def test_prepare_features_prints_the_path_of_the_table(tiny_demo, capsys):
    assert (
        prepare.main(["demo", f"--data.root={tiny_demo}", "--data.size=32", "--features"]) == 0
    )  # the session's tests share this table
    printed = capsys.readouterr().out
    place = next(word for word in printed.split() if word.endswith(feature_table.FEATURES_FILE))
    table = pd.read_csv(place)
    assert set(feature_names()) < set(table.columns)
    assert "by true masks" in printed
    assert "256 px" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "--data.masks=mine"], "data.masks is 'mine'; it must be auto, truth, otsu, or run:RUN_ID"),
        (["--features", "--data.crop=true"], "--features measures whole images. Remove --data.crop"),
        (["--data.masks=otsu"], "data.masks is 'otsu'; it is for data.crop true"),
    ],
)
def test_wrong_flags_of_prepare_features_are_rejected(tiny_demo, capsys, flags, message):
    assert prepare.main(["demo", f"--data.root={tiny_demo}", "--data.size=32", *flags]) == 2
    assert message in capsys.readouterr().err


def test_one_image_is_prepared_and_measured_without_a_split(tmp_path, capsys):
    Image.new("RGB", (40, 30), (200, 150, 140)).save(tmp_path / "one.png")
    Image.fromarray(np.pad(np.full((10, 10), 255, np.uint8), 10)[:30, :40]).resize(
        (40, 30), Image.Resampling.NEAREST
    ).save(tmp_path / "mask.png")
    (tmp_path / "index.csv").write_text("image,mask,diagnosis,lesion_id\none.png,mask.png,nv,L1\n")
    out = tmp_path / "table.csv"
    assert prepare.main(["csv", f"--data.root={tmp_path}", "--data.size=16", "--features", f"--out={out}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no split" in printed
    assert "the class 'nv' has only 1 lesion" in printed
    table = pd.read_csv(out)
    assert table[["image_id", "diagnosis", "lesion_id"]].to_numpy().tolist() == [["one", "nv", "L1"]]
    assert table["abcd_diameter_px"].item() > 10


def test_masks_of_implausible_size_are_reported(tmp_path):
    table = pd.DataFrame({"image_id": list("abcd"), "abcd_diameter_by_longer_side": [0.05, 0.5, 1.3, np.nan]})
    message = FeatureTable(tmp_path, table).describe_unlikely()
    assert "1 are narrower than 10% of the longer side of the image (such as a)" in message
    assert "1 reach nearly from corner to corner (such as c)" in message
    assert FeatureTable(tmp_path, table.iloc[[1, 3]]).describe_unlikely() == ""
