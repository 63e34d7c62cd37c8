"""Copies: pictures that were edited are found, other pictures are not, and groups link what belongs together."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from pictures import EDITS, compressed, picture
from PIL import Image, ImageDraw

from skincancer.data.duplicates import exact_pairs, find_near, link
from skincancer.data.overlap import Fingerprints, find_similar, open_whole, read_fingerprints, write_fingerprints
from skincancer.data.store import Store, open_store
from skincancer.imaging.crop import Crop
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.imaging.similarity import (
    COARSE,
    coarse_detail,
    compare_texture,
    correlate,
    describe,
    is_flat,
    thumbnail,
    trim,
    turn,
)
from skincancer.schema.data import DataConfig

SIDE = 96


def thumbs(images: list[Image.Image], side: int = SIDE) -> np.ndarray:
    return np.stack([thumbnail(np.asarray(image), side) for image in images])


def pairs(found) -> set[tuple[int, int]]:
    return set(zip(found["first"], found["second"], strict=True))


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    return [picture(seed) for seed in range(30)]


def test_every_edit_is_found_and_nothing_else(originals):
    edited = [edit(originals[number]) for number, edit in enumerate(EDITS.values())]
    found = find_near(thumbs([*originals, *edited]))
    assert pairs(found) == {(number, len(originals) + number) for number in range(len(EDITS))}
    assert (found["correlation"] >= 0.9).all()


def test_the_copies_in_another_list_are_found(originals):
    edited = [edit(originals[number]) for number, edit in enumerate(EDITS.values())]
    other = [picture(1000 + seed) for seed in range(20)] + edited
    found = find_near(thumbs(originals), thumbs(other))
    assert pairs(found) == {(number, 20 + number) for number in range(len(EDITS))}
    assert pairs(find_near(thumbs(other), thumbs(originals))) == {(b, a) for a, b in pairs(found)}


def test_small_copies_such_as_a_run_keeps_suffice(originals):
    edited = [edit(originals[number]) for number, edit in enumerate(EDITS.values())]
    found = find_near(thumbs(edited), thumbs(originals, 36))
    assert pairs(found) == {(number, number) for number in range(len(EDITS))}


def test_the_centre_of_a_picture_is_found_in_the_whole_squeezed_to_a_square():
    whole = [picture(seed, (240, 180)) for seed in range(12)]
    centre = [image.crop((30, 0, 210, 180)) for image in whole]
    squeezed = [image.resize((112, 112), Image.Resampling.BILINEAR) for image in whole]
    expected = {(number, number) for number in range(12)}
    assert pairs(find_near(thumbs(squeezed), thumbs(centre))) == expected
    assert pairs(find_near(thumbs(centre), thumbs(squeezed))) == expected


def test_pictures_that_show_nothing_are_no_copies_of_one_another(originals):
    flat = [Image.new("RGB", (40, 40), colour) for colour in ("black", "black", "white", "grey")]
    one_pixel = [Image.new("RGB", (1, 1), (9, 90, 20))] * 2
    found = thumbs([*flat, *one_pixel])
    assert is_flat(found).all()
    assert find_near(found).empty
    assert find_near(found, thumbs(originals)).empty
    assert find_near(found[:0], found).empty
    assert correlate(found[0], found[1]) == 0


def test_one_image_has_no_copy(originals):
    assert find_near(thumbs(originals[:1])).empty


def test_what_candidates_are_found_by_ignores_turns_and_brightness(originals):
    small = thumbs(originals[:5], COARSE)
    turned = np.stack([turn(one, number) for one, number in zip(small, (1, 2, 5, 6, 7), strict=True)])
    np.testing.assert_allclose(describe(turned), describe(small), atol=1e-4)
    assert np.abs(describe(np.round(small * 0.8).astype(np.uint8)) - describe(small)).max() < 0.1
    assert np.abs(describe(small[:1]) - describe(small[1:2])).max() > 0.5


def test_coarse_detail_gives_the_correlation_that_numpy_gives(originals):
    detail = coarse_detail(thumbs(originals[:2], COARSE))
    grey = [one.astype(np.float32) for one in thumbs(originals[:2], COARSE)]
    fine = [(one - cv2.GaussianBlur(one, (0, 0), COARSE / 16)).ravel() for one in grey]
    assert detail[0] @ detail[1] == pytest.approx(np.corrcoef(*fine)[0, 1], abs=1e-4)


def test_correlation_is_that_of_the_same_picture_and_not_of_another(originals):
    one, other = thumbs(originals[:2], 64)
    assert correlate(one, one) == pytest.approx(1, abs=1e-4)
    assert correlate(turn(one, 3), one, 1) == pytest.approx(1, abs=1e-3)
    assert correlate(one, 255 - one) <= 0
    assert correlate(one, other) < 0.5


# Contrasts of texture at which the surroundings are stronger.
CONTRASTS = {"slide frame": 13, "black ground": 11, "plain skin": 34}


def surrounded(seed: int, surroundings: str) -> Image.Image:
    """A lesion of its own texture, with the shape and the surroundings of all others."""
    rng, contrast = np.random.default_rng(seed), CONTRASTS[surroundings]
    scales = [rng.normal(0, contrast, (cells, cells)) for cells in (6, 32)]
    noise = sum(cv2.resize(scale, (160, 160), interpolation=cv2.INTER_CUBIC) for scale in scales)
    own = Image.fromarray((150 + noise[..., None] + [40, 0, -10]).clip(0, 255).astype(np.uint8))
    window = Image.new("L", own.size)
    if surroundings == "slide frame":
        ImageDraw.Draw(window).rounded_rectangle((36, 36, 124, 124), radius=18, fill=255)
        return Image.composite(own, Image.new("RGB", own.size, (14, 12, 10)), window)
    ImageDraw.Draw(window).polygon([(40, 50), (80, 40), (120, 70), (105, 115), (60, 125)], fill=255)
    if surroundings == "black ground":
        return Image.composite(own, Image.new("RGB", own.size), window)
    dark, skin = own.point(lambda value: round(0.4 * value)), own.point(lambda value: round(0.05 * value) + 190)
    return Image.composite(dark, skin, window)


@pytest.mark.parametrize("surroundings", CONTRASTS)
def test_copies_are_found_and_lesions_in_the_same_surroundings_are_not(surroundings):
    look_alikes = [surrounded(seed, surroundings) for seed in range(30)]
    detail = thumbs(look_alikes, 64)
    assert max(correlate(detail[0], other) for other in detail[1:]) >= 0.9, "surroundings alone pass the first check"
    edited = [edit(look_alikes[number]) for number, edit in enumerate(EDITS.values())]
    found = find_near(thumbs([*look_alikes, *edited]))
    assert pairs(found) == {(number, len(look_alikes) + number) for number in range(len(EDITS))}


def test_dark_surroundings_are_cut_off():
    lesion = np.random.default_rng(0).integers(60, 255, (48, 60), dtype=np.uint8)
    framed = np.full((96, 96), 12, np.uint8)
    framed[20:68, 10:70] = lesion
    np.testing.assert_array_equal(trim(framed), cv2.resize(lesion, (96, 96), interpolation=cv2.INTER_LINEAR))
    for whole in (np.zeros((96, 96), np.uint8), np.full((96, 96), 200, np.uint8)):
        np.testing.assert_array_equal(trim(whole), whole)


def test_texture_of_copies_is_alike_and_of_other_lesions_is_not(originals):
    own, copy, other = thumbs([originals[0], compressed(originals[0], 60), originals[1]])
    assert compare_texture(own, own) == pytest.approx(1, abs=0.01)
    assert compare_texture(turn(own, 3), copy, 1) > 0.7
    assert compare_texture(own, other) < 0.15
    smooth = cv2.GaussianBlur(own, (0, 0), 8)
    assert compare_texture(smooth, smooth) == 1, "without texture, the first comparison decides"


def test_exact_pairs_and_groups():
    assert exact_pairs(["a", "b", "a", "", "", "a"]) == [(0, 2), (0, 5)]
    assert link(6, [(0, 2), (2, 5), (3, 4)]) == [[0, 2, 5], [3, 4]]
    assert link(3, []) == []


def store_run(folder: Path, images: list[Image.Image], size: int, resize: str) -> tuple[Store, Fingerprints]:
    """Return the store of images, and the fingerprints of a run that was trained on the first half."""
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    names, half = [str(number) for number in range(len(images))], len(images) // 2
    index = pd.DataFrame({"image_id": names, "image": [f"{name}.png" for name in names], "mask": None})
    index["role"] = ["train"] * half + ["test"] * (len(images) - half)
    store = open_store(index, folder, folder / "cache", Preprocessing(size, resize), jobs=1)
    write_fingerprints(folder / "fingerprints.npz", index, store, resize)
    return store, read_fingerprints(folder / "fingerprints.npz")


@pytest.mark.parametrize("resize", ["pad", "stretch", "crop"])
def test_a_run_knows_copies_of_its_images_and_takes_no_bars_for_likeness(tmp_path, resize):
    images = [picture(seed, (160, 100), texture=0.25) for seed in range(20)]  # bars are stronger than this
    images.append(EDITS["brighter"](EDITS["flip"](images[3])))
    store, used = store_run(tmp_path, images, 32, resize)
    found = find_similar(store, np.arange(10, 21), resize, used)
    assert found[["row", "like"]].to_numpy().tolist() == [[20, "3"]]


def test_a_run_finds_copies_of_framed_lesions_and_no_look_alikes(tmp_path):
    images = [surrounded(seed, "black ground") for seed in range(30)]
    images.append(EDITS["brighter"](EDITS["flip"](images[3])))
    store, used = store_run(tmp_path, images, 160, "stretch")
    rows = np.arange(15, 31)
    assert find_similar(store, rows, "stretch", used)[["row", "like"]].to_numpy().tolist() == [[30, "3"]]
    # The fingerprints of an older run show the surroundings, so new images are compared with their surroundings.
    thumbnails = thumbs(images[:15], 36)
    np.savez_compressed(tmp_path / "older.npz", image_id=used.image_id, thumbnails=thumbnails)
    older = read_fingerprints(tmp_path / "older.npz")
    assert (used.trimmed, older.trimmed) == (True, False)
    expected = find_near(thumbs(images[15:]), thumbnails)
    assert find_similar(store, rows, "stretch", older)["row"].tolist() == sorted(set(expected["first"] + 15))
    assert len(set(expected["first"])) > 1, "look-alikes"


@pytest.mark.parametrize(
    ("recipe", "edit"),
    [
        ({"crop": True}, lambda image: image),
        ({"resize": "crop"}, lambda image: image.resize((160, 160))),  # squeezed: its centre is another part
        ({"resize": "pad", "clean": ["frame", "hair", "glare", "colour", "contrast"]}, lambda image: image),
    ],
    ids=["crop", "resize", "clean"],
)
def test_copies_are_found_whatever_a_recipe_shows_of_them(tmp_path, monkeypatch, recipe, edit):
    """The run cropped by true masks; what it is asked about has none, and is cropped by Otsu's threshold."""
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    config, opened = DataConfig(size=64, **recipe), []
    for kind in ("own", "copy"):
        (tmp_path / kind).mkdir()
        rows = []
        for seed in range(24 if kind == "own" else 36):
            image = picture(seed, (240, 120))
            if kind == "copy":
                image = compressed(edit(EDITS["flip"](image)), 80)
            image.save(tmp_path / kind / f"{seed}.png")
            mask = Image.new("L", image.size)
            mask.paste(255, (90, 20, 160, 90))
            mask.save(tmp_path / kind / f"{seed}_mask.png")
            rows.append((str(seed), f"{seed}.png", f"{seed}_mask.png", "train"))
        index = pd.DataFrame(rows, columns=["image_id", "image", "mask", "role"])
        crop = Crop("truth" if kind == "own" else "otsu", 0.1) if config.crop else None
        store = open_store(
            index, tmp_path / kind, tmp_path / "cache", Preprocessing(64, config.resize, tuple(config.clean), crop),
            jobs=1,
        )  # fmt: skip
        opened.append((index, *open_whole(index, tmp_path / kind, store, config, jobs=1)))
        assert (opened[-1][1] is store) == (config.resize == "pad"), "only what shows parts is decoded twice"
    (own, *whole), (_, asked, resize) = opened
    write_fingerprints(tmp_path / "fingerprints.npz", own, *whole)
    used = read_fingerprints(tmp_path / "fingerprints.npz")
    found = find_similar(asked, np.arange(36), resize, used)
    assert (found["row"].astype(str) == found["like"]).all()
    assert len(found) == 24
