"""The embedded demo data set: what is drawn, how it is left on disk, and how it is read."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skincancer.data.readers import demo
from skincancer.data.readers.demo_drawing import CLASSES, draw_lesion, draw_view
from skincancer.errors import DataError

SOME = {"nv": 12, "mel": 5, "bkl": 5, "bcc": 5, "akiec": 5, "vasc": 5, "df": 5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "drawn"
    demo.draw(root, SOME)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes_other_seed_other_images(tmp_path: Path) -> None:
    few = {"nv": 2, "mel": 1}
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        demo.draw(tmp_path / name, few, seed=seed)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    assert not {v for k, v in first.items() if k.startswith("images")} & set(other.values())


def test_a_lesion_looks_the_same_however_many_others_are_drawn(tmp_path: Path, root: Path) -> None:
    demo.draw(tmp_path / "few", {"vasc": 2})
    few = {v for k, v in digests(tmp_path / "few").items() if k.startswith("images")}
    assert few
    assert few <= set(digests(root).values())


def test_version_follows_the_drawing() -> None:
    # Mean colours at VERSION 1. If this fails, the drawing changed: raise VERSION, then renew the numbers.
    assert demo.VERSION == 1
    expected = {
        "akiec": (200.4, 133.6, 137.6),
        "bcc": (216.3, 163.6, 161.3),
        "bkl": (216.0, 152.9, 131.2),
        "df": (169.3, 123.0, 115.1),
        "mel": (157.3, 122.1, 128.2),
        "nv": (178.5, 120.7, 115.1),
        "vasc": (192.5, 139.5, 136.1),
    }
    for diagnosis, colour in expected.items():
        image, _ = draw_view(draw_lesion(diagnosis, np.random.default_rng(7)), np.random.default_rng(8))
        assert np.asarray(image).mean((0, 1)) == pytest.approx(colour, abs=0.5), diagnosis


def test_counts_are_those_asked_for(root: Path) -> None:
    table = demo.read(root)
    lesions = table.drop_duplicates("lesion_id")
    assert Counter(lesions.diagnosis) == SOME
    assert set(table.groupby("lesion_id").size()) == {1, 2, 3}
    for column in ["diagnosis", "age", "sex", "site", "dx_type"]:  # what belongs to the lesion is the same in its views
        assert table.groupby("lesion_id")[column].nunique(dropna=False).max() == 1


def test_default_has_every_class_and_mostly_nevi() -> None:
    assert set(demo.LESIONS) == set(CLASSES) == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
    assert max(demo.LESIONS, key=demo.LESIONS.__getitem__) == "nv"
    assert demo.LESIONS["nv"] > 4 * min(demo.LESIONS.values())


def test_images_and_masks_fit_each_other(root: Path) -> None:
    shapes = Counter()
    for row in demo.read(root).itertuples():
        image, mask = Image.open(root / row.image), Image.open(root / row.mask)
        assert (image.format, image.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "L")
        assert image.size == mask.size
        pixels = np.asarray(mask)
        assert set(np.unique(pixels)) == {0, 255}
        assert 0.01 < (pixels > 0).mean() < 0.9
        shapes[image.size] += 1
    assert set(shapes) == {(160, 120), (120, 160)}
    assert shapes[160, 120] > shapes[120, 160]


def test_the_mask_covers_the_lesion(root: Path) -> None:
    # Nevi are darker than their skin: the mean inside the mask lies well below the mean of a ring around it.
    table = demo.read(root)
    differences = []
    for row in table[table.diagnosis == "nv"].itertuples():
        grey = np.asarray(Image.open(root / row.image).convert("L"), dtype=float)
        inside = np.asarray(Image.open(root / row.mask)) > 0
        y, x = np.nonzero(inside)
        box = np.zeros_like(inside)
        box[max(y.min() - 8, 0) : y.max() + 8, max(x.min() - 8, 0) : x.max() + 8] = True
        differences.append(grey[box & ~inside].mean() - grey[inside].mean())
    assert np.median(differences) > 20
    assert np.mean(np.array(differences) > 0) > 0.9


def test_views_of_one_lesion_differ(root: Path) -> None:
    table = demo.read(root)
    several = table[table.lesion_id.duplicated(keep=False)]
    assert len({hashlib.sha256((root / path).read_bytes()).hexdigest() for path in several.image}) == len(several)


def test_read_gives_the_index_columns(root: Path) -> None:
    table = demo.read(root)
    assert list(table.columns) == [
        "image_id",
        "image",
        "mask",
        "diagnosis",
        "lesion_id",
        "age",
        "sex",
        "site",
        "dx_type",
    ]
    assert table.image_id.is_unique
    assert table.image_id[0] == "DEMO_0000001"
    assert table.image[0] == "images/DEMO_0000001.jpg"
    assert table["mask"][0] == "masks/DEMO_0000001_segmentation.png"
    assert all((root / path).is_file() for path in [*table.image, *table["mask"]])
    assert table.age.dtype == np.float64
    assert table.age.dropna().between(5, 85).all()
    assert set(table.sex) <= {"male", "female", "unknown"}
    assert not table.drop(columns="age").isna().to_numpy().any()


def test_empty_age_is_read_as_missing_and_empty_text_as_empty(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization\nL1,0012,nv,,,NA,\nL2,0013,mel,histo,55.0,male,back\n"
    )
    table = demo.read(tmp_path)
    assert table.loc[0, ["image_id", "sex", "site", "dx_type"]].tolist() == ["0012", "NA", "", ""]
    assert np.isnan(table.age[0])
    assert table.age[1] == 55


def test_the_files_carry_ham10000s_columns(root: Path) -> None:
    published = pd.read_csv(root / "metadata.csv")
    assert list(published.columns) == ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]


def test_an_interrupted_draw_leaves_nothing_that_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_view(*arguments)

    root = tmp_path / "demo"
    with monkeypatch.context() as patch:
        patch.setattr(demo, "draw_view", failing)
        with pytest.raises(KeyboardInterrupt):
            demo.draw(root, {"nv": 6})
    with pytest.raises(DataError, match=r"metadata\.csv"):
        demo.read(root)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    demo.draw(root, {"nv": 6})
    assert demo.read(root).lesion_id.nunique() == 6


def test_what_a_killed_draw_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".demo.partial" / "images"
    left.mkdir(parents=True)
    (left / "DEMO_0009999.jpg").write_bytes(b"half")
    demo.draw(tmp_path / "demo", {"df": 1})
    assert not left.exists()
    assert not (tmp_path / "demo" / "images" / "DEMO_0009999.jpg").exists()


def test_two_at_once_draw_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=demo.draw, args=(tmp_path / "demo", {"nv": 8, "df": 4})) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert demo.read(tmp_path / "demo").lesion_id.nunique() == 12


def test_drawing_again_keeps_what_is_there_and_never_mixes(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    demo.draw(root, {"nv": 1})
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    demo.draw(root, {"nv": 1, "mel": 0})
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(DataError, match="not an empty folder"):
        demo.draw(root, {"nv": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(DataError, match="not an empty folder"):
        demo.draw(tmp_path / "mine", {"nv": 1})
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"
    with pytest.raises(DataError, match="not an empty folder"):
        demo.draw(tmp_path / "mine" / "thesis.txt", {"nv": 1})


def test_progress_counts_images(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    demo.draw(tmp_path / "demo", {"bcc": 4}, progress=lambda done, total: seen.append((done, total)))
    total = len(demo.read(tmp_path / "demo"))
    assert seen == [(number, total) for number in range(1, total + 1)]


@pytest.mark.parametrize(
    ("lesions", "message"),
    [
        ({"mell": 3}, "Did you mean 'mel'"),
        ({"nv": -1}, "expected an integer"),
        ({"nv": 1.5}, "expected an integer"),
        ({}, "number of lesions is 0 for every class"),
        ({"nv": 0}, "number of lesions is 0 for every class"),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, lesions: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        demo.draw(tmp_path / "demo", lesions)
    assert not (tmp_path / "demo").exists()


def test_wrong_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="seed"):
        demo.draw(tmp_path / "demo", {"nv": 1}, seed=-1)


def test_default_root_names_the_version(tmp_path: Path) -> None:
    assert demo.default_root(tmp_path) == tmp_path / f"demo-{demo.VERSION}"


def test_what_is_drawn_can_be_asked_for_again_without_writing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FileLock", None)  # a read-only disk has no room for a lock
    demo.draw(root, SOME)
