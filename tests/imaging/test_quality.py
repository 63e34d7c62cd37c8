"""Quality measures of synthetic images, reasons of flagged images, and dropping flagged images."""

import numpy as np
import pandas as pd
import pytest
from pictures import picture
from PIL import Image, ImageDraw, ImageFilter
from skimage.color import rgb2lab

from skincancer.config.resolve import resolve
from skincancer.data.catalog import dataset
from skincancer.data.file_facts import examine
from skincancer.data.index import load_index
from skincancer.data.prepare import prepare_data
from skincancer.errors import ConfigError
from skincancer.imaging.quality import COLUMNS, RULES, border, flags, hair_share, measure
from skincancer.schema.data import QUALITY_RULES, DataConfig


def measured(image: Image.Image) -> dict[str, float]:
    return measure(np.asarray(image))


def reasons(image: Image.Image) -> str:
    return "; ".join(flags(measured(image), QUALITY_RULES).values())


@pytest.fixture(scope="module")
def skin() -> Image.Image:
    smooth = np.asarray(picture(3, (256, 256))).astype(float)
    grain = np.random.default_rng(0).normal(scale=2, size=(256, 256, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def test_good_image_is_not_flagged(skin):
    values = measured(skin)
    assert tuple(values) == COLUMNS
    assert values["quality_resolution"] == 256
    assert reasons(skin) == ""


def test_each_fault_is_flagged_for_the_right_reason(skin):
    hairy, ruled, inked, framed = skin.copy(), skin.copy(), skin.copy(), skin.copy()
    draw = ImageDraw.Draw(hairy)
    for start in range(0, 256, 8):
        draw.line([(start, 0), (start + 60, 255)], fill=(40, 25, 20), width=2)
    draw = ImageDraw.Draw(ruled)
    for tick in range(5, 250, 10):
        draw.line([(2, tick), (16, tick)], fill=(20, 20, 20), width=2)
    ImageDraw.Draw(inked).ellipse([0, 0, 50, 50], fill=(60, 40, 190))
    ImageDraw.Draw(framed).rectangle([0, 0, 60, 255], fill=(2, 2, 2))
    assert "covered by hair" in reasons(hairy)
    assert "a ruler at the edge" in reasons(ruled)
    assert "ink or a coloured object" in reasons(inked)
    assert "a wide black border" in reasons(framed)
    assert "blurred (sharpness" in reasons(skin.filter(ImageFilter.GaussianBlur(6)))
    assert "too dark" in reasons(skin.point(lambda value: value // 5 + 12))
    assert "too bright" in reasons(skin.point(lambda value: min(255, value + 110)))
    assert "hardly any colour" in reasons(skin.convert("L").convert("RGB"))
    assert "too few pixels" in reasons(skin.resize((40, 40)))
    assert "a strong colour cast" in reasons(
        Image.merge(
            "RGB", [band.point(lambda v, k=k: v * k // 10) for band, k in zip(skin.split(), (12, 4, 3), strict=True)]
        )
    )


def test_contrast_is_high_for_a_small_dark_lesion_only():
    plain = np.random.default_rng(0).normal([190, 150, 130], 2, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    dark, faint = Image.fromarray(plain), Image.fromarray(plain)
    ImageDraw.Draw(dark).ellipse([115, 115, 145, 145], fill=(70, 45, 40))
    ImageDraw.Draw(faint).ellipse([60, 60, 190, 190], fill=(178, 138, 118))
    assert "contrast" not in reasons(dark)
    assert "hardly any contrast" in reasons(faint)


def test_blue_lesion_at_the_edge_is_no_ink(skin):
    lesion, sticker = skin.copy(), skin.copy()
    draw = ImageDraw.Draw(lesion)
    draw.ellipse([10, 60, 180, 200], fill=(40, 40, 110))
    draw.ellipse([183, 90, 230, 140], fill=(40, 40, 110))  # connected except for a narrow gap
    ImageDraw.Draw(sticker).ellipse([170, 60, 300, 190], fill=(40, 40, 110))
    assert measured(lesion)["quality_ink"] == 0
    assert "ink" in reasons(sticker)


def test_measures_agree_with_their_definitions(skin):
    values, pixels = measured(skin), np.asarray(skin)
    laplacian = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], float)
    from scipy.ndimage import convolve, gaussian_filter

    grey = np.asarray(skin.convert("L"), float)
    assert values["quality_sharpness"] == pytest.approx(convolve(grey, laplacian, mode="mirror").var(), rel=0.05)
    assert values["quality_exposure"] == pytest.approx(np.median(grey) / 255, abs=0.01)
    low, high = np.percentile(gaussian_filter(grey, 2), (0.5, 99.5))
    assert values["quality_contrast"] == pytest.approx((high - low) / 255, abs=0.01)
    lab = rgb2lab(pixels.mean(axis=(0, 1)).reshape(1, 1, 3) / 255)[0, 0]
    assert values["quality_cast"] == pytest.approx(np.hypot(lab[1], lab[2]), rel=0.02)
    assert values["quality_saturation"] == pytest.approx(np.asarray(skin.convert("HSV"))[..., 1].mean() / 255, abs=0.01)


def test_border_is_the_dark_area_at_a_corner_and_not_the_lesion():
    image = np.full((100, 100, 3), 180, np.uint8)
    image[:, :10] = 5
    image[40:60, 40:60] = 5
    found = border(image)
    assert found.sum() == 1000
    assert found[:, :10].all()


def test_black_border_affects_neither_colour_nor_ruler():
    image = np.full((256, 256, 3), (200, 100, 100), np.uint8)
    image[:64] = 25
    image[:64, ::8] = 0  # such as the blocks of a JPEG
    found = measure(image)
    assert found["quality_border"] == 0.25
    assert found["quality_saturation"] == pytest.approx(0.5, abs=0.005)
    assert found["quality_ruler"] == 0
    image[:64] += 60
    assert measure(image)["quality_ruler"] > 0.5, "the same pattern, not black"


def test_hair_is_thin_and_long():
    image = np.full((256, 256, 3), 180, np.uint8)
    image[100:130, 100:130] = 60  # a lesion
    assert hair_share(image) == 0
    image[:, 50:53] = 60
    assert hair_share(image) == pytest.approx(3 / 256, abs=0.005)


@pytest.mark.parametrize("image", [
    np.zeros((1, 1, 3), np.uint8), np.zeros((40, 30, 3), np.uint8), np.full((30, 40, 3), 255, np.uint8), np.zeros((1, 500, 3), np.uint8),
])  # fmt: skip
def test_degenerate_images_are_measured(image):
    assert all(np.isfinite(value) for value in measure(image).values())


def test_small_image_is_not_blurred(skin):
    small = skin.resize((128, 128), Image.Resampling.LANCZOS)
    assert "blurred" not in flags(measured(small), QUALITY_RULES)
    assert "blurred" in flags(measured(small.filter(ImageFilter.GaussianBlur(4))), QUALITY_RULES)


def test_sharpness_ignores_the_edge_of_the_border(skin):
    vague = skin.filter(ImageFilter.GaussianBlur(5))
    field = Image.new("L", skin.size)
    ImageDraw.Draw(field).ellipse((4, 4, 251, 251), fill=255)
    framed = Image.composite(vague, Image.new("RGB", skin.size), field)
    assert measured(framed)["quality_border"] > 0.1
    assert measured(framed)["quality_sharpness"] == pytest.approx(measured(vague)["quality_sharpness"], abs=1)
    assert "blurred" in flags(measured(framed), QUALITY_RULES)
    assert measured(Image.new("RGB", (64, 64)))["quality_sharpness"] == 0


def test_rules_and_thresholds_come_from_the_config():
    values = dict.fromkeys(COLUMNS, 0.5) | {"quality_sharpness": 50.0}
    assert flags(values, {"blurred": 60}) == {"blurred": "blurred (sharpness 50, below 60)"}
    assert flags(values, {"blurred": 40}) == {}
    assert flags(values | {"quality_sharpness": float("nan")}, {"blurred": 60}) == {}
    assert set(QUALITY_RULES) == set(RULES)
    assert {rule.column for rule in RULES.values()} <= set(COLUMNS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data.quality": "drop_flagged", "data.quality_rules": {"blury": 3.0}}, "Did you mean 'blurred'?"),
        ({"data.quality": "drop_flagged", "data.quality_rules": {}}, "data.quality_rules is empty"),
        (
            {"data.quality": "drop_flagged", "data.quality_rules": {"blurred": float("nan")}},
            "data.quality_rules.blurred is nan; expected a finite number of 0 or more for quality_sharpness",
        ),
        (
            {"data.quality": "drop_flagged", "data.quality_rules": {"border": 7.0}},
            "border is 7.0; expected a number from 0 to 1 for quality_border",
        ),
        (
            {"data.quality": "drop_flagged", "data.quality_rules": {"cast": -5.0}},
            "cast is -5.0; expected a finite number of 0 or more for quality_cast",
        ),
        ({"data.quality_rules": {"blurred": 3.0}}, "it is for data.quality drop_flagged"),
        ({"data.quality": "drop"}, "keep"),
    ],
)
def test_wrong_quality_settings_fail(flags, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        resolve("resnet50", flags)


def test_flagged_images_are_dropped_and_the_split_of_others_stays(tmp_path):
    rows = []
    for number in range(24):
        image = picture(200 + number)
        if number in (4, 5):
            image = image.filter(ImageFilter.GaussianBlur(9))
        image.save(tmp_path / f"{number:02}.png")
        rows.append([f"{number:02}.png", "mel" if number % 2 else "nv"])
    pd.DataFrame(rows, columns=["image", "diagnosis"]).to_csv(tmp_path / "index.csv", index=False)
    given = {"dataset": "csv", "root": str(tmp_path), "size": 16}
    kept = prepare_data(DataConfig(**given), jobs=1)
    assert (kept.flagged, len(kept.dropped)) == (0, 0)
    left = prepare_data(DataConfig(**given, quality="drop_flagged", quality_rules={"blurred": 2.0}), jobs=1)
    assert left.flagged == 2
    assert left.dropped["image_id"].tolist() == ["04", "05"]
    assert left.dropped["reason"].str.startswith("flagged: blurred (sharpness").all()
    assert left.left_out == "2 images (dropped.csv): 2 × blurred", "the rules are counted, not the measures"
    assert kept.left_out == ""
    others = ~kept.index["image_id"].isin(["04", "05"])
    assert (left.index["role"] == kept.index["role"])[others].all()
    assert (left.index["role"][~others] == "").all()
    assert left.split_hash == kept.split_hash
    assert not {*COLUMNS, "quality_flags"} & set(kept.split_table), "quality has not been measured yet"
    table = left.split_table.set_index("image_id")
    assert table.index[table["quality_flags"] == "blurred"].tolist() == ["04", "05"]
    assert (table["quality_flags"] == "").sum() == 22
    table = prepare_data(DataConfig(**given), jobs=1).split_table.set_index("image_id")
    for number in (4, 7):
        values = measured(Image.open(tmp_path / f"{number:02}.png"))
        assert table.iloc[number][list(COLUMNS)].astype(float).to_dict() == pytest.approx(values)
        assert table["quality_flags"].iloc[number] == "; ".join(flags(values, QUALITY_RULES))


def test_file_facts_are_cached(tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.jpg", quality=70)
    (tmp_path / "index.csv").write_text("image,diagnosis\n0.jpg,nv\n1.jpg,nv\n2.jpg,mel\n")
    index, _ = load_index(dataset("csv"), tmp_path)
    first = examine(index, tmp_path, tmp_path / "cache", jobs=1)
    calls = []
    again = examine(index, tmp_path, tmp_path / "cache", progress=lambda *done: calls.append(done), jobs=1)
    assert not calls, "no file is read again"
    pd.testing.assert_frame_equal(first.table, again.table)
    size = (tmp_path / "1.jpg").stat().st_size
    assert first.table["bytes_per_pixel"][1] == pytest.approx(size / 160**2)
    with Image.open(tmp_path / "1.jpg") as image:
        assert first.table["jpeg_table"][1] == pytest.approx(np.mean([*image.quantization[0], *image.quantization[1]]))
    picture(7).save(tmp_path / "1.jpg", quality=71)
    assert examine(index, tmp_path, tmp_path / "cache", jobs=1).key != first.key


def test_edge_colour_ignores_the_lesion_mask(tmp_path):
    image = np.full((100, 100, 3), (200, 150, 130), np.uint8)
    image[30:70] = (60, 30, 20)  # a lesion from edge to edge
    for name in ("masked", "plain", "full"):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    lesion = np.zeros((100, 100), np.uint8)
    lesion[30:70] = 255
    Image.fromarray(lesion).save(tmp_path / "mask.png")
    Image.new("L", (100, 100), 255).save(tmp_path / "all.png")
    (tmp_path / "index.csv").write_text(
        "image,diagnosis,mask\nfull.png,nv,all.png\nmasked.png,nv,mask.png\nplain.png,nv,\n"
    )
    index, _ = load_index(dataset("csv"), tmp_path)
    red = examine(index, tmp_path, tmp_path / "cache", jobs=1).table.set_index("image_id")["frame_red"]
    assert red["masked"] == 200
    edge = 100**2 - 88**2
    assert red["plain"] == pytest.approx(200 - 140 * 2 * 6 * 40 / edge)
    assert red["full"] == red["plain"], "the mask covers the whole edge"
