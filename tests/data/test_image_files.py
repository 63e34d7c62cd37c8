"""Links, skipped files and file names, in every reader and in predict."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import put, write
from PIL import Image

from skincancer.data.catalog import dataset
from skincancer.data.image_files import ImageSearch, unpacked_root
from skincancer.data.index import load_index
from skincancer.data.prepare import locate_dataset, prepare_data
from skincancer.data.reading import Reading
from skincancer.errors import DataError
from skincancer.imaging import formats
from skincancer.inference.image_files import find_images
from skincancer.schema.data import DataConfig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "data", *(f"{name}/{number}.jpg" for name in ("mel", "nevus") for number in range(3)))
    return tmp_path / "data"


def names(root: Path) -> list[str]:
    return load_index(dataset("folder"), root)[0]["image"].tolist()


def notes(root: Path) -> list[str]:
    reading = Reading()
    load_index(dataset("folder"), root, reading)
    return reading.notes


IMAGES = [f"{name}/{number}.jpg" for name in ("mel", "nevus") for number in range(3)]


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
@pytest.mark.parametrize("link", ["mel/up", "up", "mel/deep/up"])
def test_a_link_to_a_folder_above_adds_no_image(root: Path, link: str, target: str) -> None:
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(target)
    assert names(root) == IMAGES
    assert notes(root) == [f"skipped links to a folder above them: {root / link}"]
    assert [Path(row.file).relative_to(root).as_posix() for row in find_images([root])] == IMAGES
    assert [Path(row.file).relative_to(root).as_posix() for row in find_images([root / "**/*.jpg"])] == IMAGES


def test_links_among_subfolders_add_no_image(root: Path) -> None:
    """Eight folders with links to each other have millions of paths."""
    for name in "abcdefgh":
        put(root / "mel" / name, f"{name}.jpg")
        for other in "abcdefgh":
            (root / "mel" / name / f"to_{other}").symlink_to(f"../{other}")
    assert names(root) == sorted([*IMAGES, *(f"mel/{name}/{name}.jpg" for name in "abcdefgh")])


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_file_is_read_once_in_a_class(root: Path, make) -> None:
    (root / "mel/a").mkdir()
    make(root / "mel/0.jpg", root / "mel/a/copy.jpg")
    assert names(root) == IMAGES
    assert notes(root) == ["skipped 1 link to an image or folder read elsewhere in the same folder"]
    search = ImageSearch()
    assert [Path(row.file).relative_to(root).as_posix() for row in find_images([root], search)] == IMAGES
    assert search.describe() == notes(root)


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_file_in_two_classes_is_refused(root: Path, make) -> None:
    make(root / "nevus/0.jpg", root / "mel/a.jpg")
    with pytest.raises(DataError, match=r"mel/a.jpg and .*nevus/0.jpg are one file in the classes mel and nevus"):
        names(root)


def test_a_class_folder_that_links_to_another_class_is_refused(root: Path) -> None:
    (root / "mel/other").symlink_to("../nevus")
    with pytest.raises(DataError, match=r"mel/other/0.jpg and .*nevus/0.jpg are one file"):
        names(root)


def test_folders_on_other_disks_are_read_through_links(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "disk", "bcc/1.jpg", "more/2.jpg", "3.jpg")
    (root / "bcc").symlink_to(tmp_path / "disk/bcc")
    (root / "nevus/more").symlink_to(tmp_path / "disk/more")
    (root / "mel/x.jpg").symlink_to(tmp_path / "disk/3.jpg")
    expected = sorted([*IMAGES, "bcc/1.jpg", "nevus/more/2.jpg", "mel/x.jpg"])
    assert names(root) == expected
    assert notes(root) == []
    (tmp_path / "alias").symlink_to(root)
    assert names(tmp_path / "alias") == expected
    assert sorted(Path(row.file).relative_to(root).as_posix() for row in find_images([root / "**/*"])) == expected


def test_a_link_back_from_another_disk_adds_no_image(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "disk/bcc", "1.jpg")
    (tmp_path / "disk/bcc/back").symlink_to(root)
    (tmp_path / "disk/bcc/disk").symlink_to(tmp_path / "disk")
    (root / "bcc").symlink_to(tmp_path / "disk/bcc")
    assert names(root) == sorted([*IMAGES, "bcc/1.jpg"])


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(path)


def official(root: Path, **options) -> DataConfig:
    return DataConfig(dataset="folder", root=str(root), split="official", size=8, **options)


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_test_files_that_link_to_training_files_are_leaks(tmp_path: Path, monkeypatch, make) -> None:
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    for number, name in enumerate(
        f"{part}/{label}/{i}.png" for part in ("train", "test") for label in ("mel", "nv") for i in range(6)
    ):
        picture(root / name, number)
    for number in range(2):
        make(root / f"train/mel/{number}.png", root / f"test/mel/copy{number}.png")
    with pytest.raises(
        DataError,
        match=r"2 lesions or patients with 4 images are in more than one subset.*4 images are links to only 2 files",
    ):
        prepare_data(official(root), jobs=1)
    data = prepare_data(official(root, leaks="drop_from_train"), jobs=1)
    assert set(data.dropped["image_id"]) == {"train/mel/0", "train/mel/1"}
    assert data.reading.notes == ["4 images are links to only 2 files; the images of one file count as one lesion"]
    # A ratio keeps the copies in one subset.
    table = prepare_data(DataConfig(dataset="folder", root=str(root), size=8), jobs=1).index.set_index("image_id")
    for number in range(2):
        assert table["role"][f"train/mel/{number}"] == table["role"][f"test/mel/copy{number}"]


def test_rows_of_a_table_that_are_one_file_count_as_one_lesion(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    for number in range(12):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "link.png").symlink_to("3.png")
    rows = [f"{number}.png,{'mel' if number % 2 else 'nv'}" for number in range(12)]
    write(tmp_path / "index.csv", "image,diagnosis", *rows, "link.png,mel")
    data = prepare_data(DataConfig(dataset="csv", root=str(tmp_path), size=8), jobs=1, whole=True)
    assert data.index.set_index("image_id")["lesion_id"][["3", "link"]].tolist() == ["3", "3"]
    assert data.reading.notes[1:] == ["2 images are links to only 1 file; the images of one file count as one lesion"]


@pytest.mark.parametrize("link", ["mel/a.jpg", "mel/folder", "bcc"])
def test_broken_links_stop_every_search(root: Path, link: str) -> None:
    (root / link).symlink_to("/nowhere/else")
    for search in (lambda: names(root), lambda: find_images([root]), lambda: find_images([root / "**/*.jpg"])):
        with pytest.raises(DataError, match=rf"1 link is broken: {root / link} -> /nowhere/else\. Restore the files"):
            search()
    with pytest.raises(DataError, match="1 link is broken"):
        find_images([root / link])


def test_a_link_to_itself_is_a_broken_link(root: Path) -> None:
    (root / "mel/self.jpg").symlink_to("self.jpg")
    with pytest.raises(DataError, match="1 link is broken"):
        names(root)


def test_a_root_may_be_named_through_a_link_and_its_parent(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/deep", "x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/deep")
    (tmp_path / "elsewhere/data").symlink_to(root)
    assert names(tmp_path / "link/../data") == IMAGES


def test_a_broken_link_of_another_kind_of_file_is_ignored(root: Path) -> None:
    (root / "mel/notes.txt").symlink_to("/nowhere/else")
    assert names(root) == IMAGES


def test_broken_links_stop_readers_of_publishers(tmp_path: Path) -> None:
    write(tmp_path / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", "H,ISIC_1,mel,,,,")
    put(tmp_path / "HAM10000_images", "ISIC_1.jpg")
    (tmp_path / "HAM10000_images/ISIC_2.jpg").symlink_to("gone.jpg")
    with pytest.raises(DataError, match="1 link is broken"):
        load_index(dataset("ham10000"), tmp_path)


@pytest.mark.parametrize(("name", "link"), [
    ("malignant_vs_benign", "test"), ("isic2018_task1", "ISIC2018_Task1-2_Training_Input"), ("ph2", "PH2Dataset"),
    ("isic2018_task3", "ISIC2018_Task3_Test_Input"), ("ham10000", "HAM10000_images"),
])  # fmt: skip
def test_a_broken_link_to_a_folder_of_a_publisher_is_named(tmp_path: Path, name: str, link: str) -> None:
    write(tmp_path / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", "H,ISIC_1,mel,,,,")
    (tmp_path / link).symlink_to("/nowhere/else")
    with pytest.raises(DataError, match=f"1 link is broken: .*{link} -> /nowhere/else"):
        load_index(dataset(name), tmp_path)


@pytest.mark.parametrize("name", [b"mel/\xff.jpg", b"\xe4h/1.jpg"])
def test_names_that_are_not_utf8_are_refused(root: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"placeholder")
    with pytest.raises(DataError, match=r"1 file name is not valid UTF-8: .*\\x(ff|e4).*Rename") as error:
        names(root)
    str(error.value).encode()
    # The table of predict replaces these bytes.
    assert str(path) in [row.file for row in find_images([root])]
    assert len(find_images([path])) == 1


def test_skipped_files_are_counted_by_ending(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(formats, "is_installed", lambda extra: False)
    put(
        root / "mel",
        "1.HEIC",
        "2.heic",
        "x.svg",
        "notes.txt",
        "Thumbs.db",
        ".x.svg",
        "LICENSE",
        "IM0001",
        "0_segmentation.png",
    )
    (root / "__MACOSX/mel").mkdir(parents=True)
    put(root / "__MACOSX/mel", "._1.jpg", "1.jpg")
    expected = [
        "skipped 5 files not read as images: 2 .heic (pip install 'skincancer[heic]'), 1 *_segmentation.png, "
        "1 without ending, 1 .svg"
    ]
    assert sorted(notes(root)[0].split(": ")[1].split(", ")) == sorted(expected[0].split(": ")[1].split(", "))
    assert names(root) == IMAGES
    search = ImageSearch()
    assert len(find_images([root], search)) == 6
    assert search.describe() == notes(root)
    put(root / "bcc", "1.heic")
    with pytest.raises(DataError, match=r"bcc contains no image; expected .*; it contains .* \.heic \(pip install"):
        names(root)
    with pytest.raises(DataError, match=r"1\.heic cannot be read without the extra heic; install it: pip install"):
        find_images([root / "bcc/1.heic"])


def test_other_endings_are_read_by_every_reader(tmp_path: Path) -> None:
    put(tmp_path / "f", "x/a.jfif", "x/b.AVIF", "y/c.jp2", "y/d.webp", "y/e.jpe", "y/f.gif", "y/g.ppm")
    assert len(names(tmp_path / "f")) == 7
    write(tmp_path / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", "H,ISIC_1,mel,,,,")
    put(tmp_path / "HAM10000_images", "ISIC_1.avif", "ISIC_2.svg")
    reading = Reading()
    index, _ = load_index(dataset("ham10000"), tmp_path, reading)
    assert index["image"].tolist() == ["HAM10000_images/ISIC_1.avif"]
    assert reading.notes == ["skipped 1 file not read as images: 1 .svg"]


def test_an_archive_may_hold_a_folder_of_its_own_name(tmp_path: Path) -> None:
    root = tmp_path / "dermo"
    put(root / "Dermo/dermo", "mel/1.jpg", "nevus/2.jpg")
    put(root / "__MACOSX/Dermo/dermo/mel", "._1.jpg")
    put(root, ".DS_Store")
    entry, place = locate_dataset(DataConfig(dataset="folder", root=str(root)))
    assert place == root / "Dermo/dermo"
    assert load_index(entry, place)[0]["image"].tolist() == ["mel/1.jpg", "nevus/2.jpg"]


def test_a_class_or_a_loop_of_the_same_name_is_no_inner_folder(tmp_path: Path) -> None:
    put(tmp_path / "mel/mel", "1.jpg")
    assert unpacked_root(tmp_path / "mel") == tmp_path / "mel"
    put(tmp_path / "data/data", "mel/1.jpg")
    put(tmp_path / "data", "nevus/1.jpg")
    assert unpacked_root(tmp_path / "data") == tmp_path / "data"
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/loop").symlink_to(".")
    assert unpacked_root(tmp_path / "loop") == tmp_path / "loop"
