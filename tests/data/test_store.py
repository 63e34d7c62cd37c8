"""Test the store: pixels, rows, keys, and killed builds."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skincancer.data import cache as cache_module
from skincancer.data.store import Store, open_store
from skincancer.errors import DataError
from skincancer.imaging import decode
from skincancer.imaging.preprocessing import Preprocessing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "own cache"


def write_images(root: Path, count: int, shape: tuple[int, int] = (24, 16)) -> pd.DataFrame:
    """Create noise images in a shuffled order of ids, and masks for every second image."""
    rng = np.random.default_rng(count)
    width, height = shape
    rows = []
    for number in rng.permutation(count):
        name = f"i{number:04d}"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{name}.png")
        mask = None
        if number % 2 == 0:
            mask = f"{name}_mask.png"
            Image.fromarray(rng.choice([0, 255], (height, width)).astype(np.uint8)).save(root / mask)
        rows.append({"image_id": name, "image": f"{name}.png", "mask": mask})
    return pd.DataFrame(rows, dtype=object)


def build(index: pd.DataFrame, root: Path, cache: Path, **options) -> Store:
    preprocessing = Preprocessing(options.pop("size", 8), options.pop("resize", "stretch"))
    return open_store(index, root, cache, preprocessing, **{"jobs": 1} | options)


def reference(root: Path, index: pd.DataFrame, size: int) -> np.ndarray:
    """Resize every image by Pillow, in the order of the index."""
    images = []
    for name in index["image"]:
        with Image.open(root / name) as image:
            images.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
    return np.stack(images)


def stores(cache: Path) -> list[str]:
    """List finished stores and remains of builds, without locks."""
    return sorted(path.name for path in (cache / "stores").iterdir() if path.suffix != ".lock")


def test_pixels_match_pillow_and_rows_match_the_index(root: Path, cache: Path):
    index = write_images(root, 30)
    store = build(index, root, cache, size=13)
    assert np.array_equal(store.images, reference(root, index, 13))
    assert store.table["image_id"].tolist() == index["image_id"].tolist()
    assert store.table[["width", "height"]].drop_duplicates().to_numpy().tolist() == [[24, 16]]
    assert store.masks is None
    assert len(store.bad) == 0
    assert stores(cache) == [store.folder.name]


def test_arrays_are_mapped_and_cannot_be_written(root: Path, cache: Path):
    store = build(write_images(root, 3), root, cache, masks=True)
    for array in (store.images, store.masks):
        assert isinstance(array, np.memmap)
        assert array.dtype == np.uint8
        assert not array.flags.writeable
    assert store.images.shape == (3, 8, 8, 3)
    assert store.masks.shape == (3, 8, 8)


def test_masks_are_binary_and_absent_ones_empty(root: Path, cache: Path):
    index = write_images(root, 6)
    masks = build(index, root, cache, masks=True).masks
    for row, name in enumerate(index["mask"]):
        if name is None:
            assert not masks[row].any()
        else:
            with Image.open(root / name) as mask:
                expected = np.asarray(mask.resize((8, 8), Image.Resampling.NEAREST)) // 255
            assert np.array_equal(masks[row], expected)
            assert set(np.unique(masks[row])) == {0, 1}


def test_several_workers_keep_the_rows_in_order(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    used = []

    class Recording(joblib.Parallel):
        def __init__(self, n_jobs, **options):
            used.append(n_jobs)
            super().__init__(n_jobs=n_jobs, **options)

    monkeypatch.setattr(cache_module, "Parallel", Recording)
    index = write_images(root, 300, shape=(6, 4))
    (root / index.at[170, "image"]).write_bytes(b"broken")
    seen = []
    store = build(index, root, cache, size=4, jobs=2, progress=lambda done, total: seen.append((done, total)))
    small = index.head(256)
    (root / index.at[170, "image"]).write_bytes((root / index.at[0, "image"]).read_bytes())
    build(small, root, cache, size=4, jobs=2)
    assert used == [2, 1], "a pool only where it is worth its start"

    pixels = reference(root, index, 4)
    pixels[170] = 0
    assert np.array_equal(store.images, pixels)
    assert store.table["image_id"].tolist() == index["image_id"].tolist()
    assert store.bad["image_id"].tolist() == [index.at[170, "image_id"]]
    assert seen == [(64, 300), (128, 300), (192, 300), (256, 300), (300, 300)]


def test_unchanged_index_opens_the_existing_store(root: Path, cache: Path):
    index = write_images(root, 4)
    first = build(index, root, cache)
    built = (first.folder / "images.npy").stat()

    def refuse(done: int, total: int) -> None:
        raise AssertionError("it was built again")

    second = build(index.assign(diagnosis="nv"), root, cache, progress=refuse)  # labels are not in the store
    assert second.folder == first.folder
    assert (second.folder / "images.npy").stat().st_ino == built.st_ino


def touch(root: Path) -> None:
    os.utime(root / "i0001.png", ns=(1, 1))


def resave(root: Path) -> None:
    """Write other bytes of another size, with the old file time."""
    path = root / "i0001.png"
    before = path.stat()
    Image.new("RGB", (24, 16), "red").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size != before.st_size


@pytest.mark.parametrize("change", [touch, resave])
def test_changed_file_changes_the_store(root: Path, cache: Path, change):
    index = write_images(root, 4)
    first = build(index, root, cache).folder
    change(root)
    changed = build(index, root, cache)
    assert changed.folder != first
    assert np.array_equal(changed.images, reference(root, index, 8))


def test_every_setting_that_changes_pixels_changes_the_store(root: Path, cache: Path):
    index = write_images(root, 4)
    renamed = index.assign(image_id=["new", *index["image_id"][1:]])
    folders = {
        build(table, root, cache, **options).folder
        for table, options in [
            (index, {}),
            (index, {"size": 9}),
            (index, {"resize": "pad"}),
            (index, {"resize": "crop"}),
            (index, {"masks": True}),
            (renamed, {}),
            (index.head(3), {}),
            (index.iloc[::-1], {}),
        ]
    }
    assert len(folders) == 8
    os.utime(root / next(name for name in index["mask"] if name), ns=(1, 1))
    assert build(index, root, cache).folder in folders, "a mask counts only where masks are stored"
    assert build(index, root, cache, masks=True).folder not in folders


def test_bad_files_have_a_row_of_zeros_and_a_reason(root: Path, cache: Path):
    index = write_images(root, 8)
    bad = {"image": ["a", "b", "c"], "content": [b"", b"text", (root / "i0000.png").read_bytes()[:200]]}
    for name, content in zip(bad["image"], bad["content"], strict=True):
        (root / name).write_bytes(content)
    index.loc[[1, 4, 6], "image"] = bad["image"]
    store = build(index, root, cache)
    assert store.bad["image_id"].tolist() == index.loc[[1, 4, 6], "image_id"].tolist()
    for reason, name, text in zip(store.bad["error"], "abc", ("0 bytes", "not an image", "decoded"), strict=True):
        assert str(root / name) in reason
        assert text in reason
    assert not store.images[[1, 4, 6]].any()
    assert (store.table.loc[[1, 4, 6], ["width", "height"]] == 0).all().all()
    good = [0, 2, 3, 5, 7]
    assert np.array_equal(store.images[good], reference(root, index.loc[good], 8))
    again = build(index, root, cache)
    pd.testing.assert_frame_equal(again.table, store.table)


def test_a_mask_of_another_size_is_a_bad_row(root: Path, cache: Path):
    index = write_images(root, 2)
    row = index["mask"].notna().idxmax()
    Image.new("L", (10, 10)).save(root / index.at[row, "mask"])
    store = build(index, root, cache, masks=True)
    assert store.bad["image_id"].tolist() == [index.at[row, "image_id"]]
    assert "24×16" in store.bad["error"].iloc[0]
    assert "10×10" in store.bad["error"].iloc[0]
    assert not len(build(index, root, cache).bad), "without masks the image is good"


def test_missing_file_is_named(root: Path, cache: Path):
    index = write_images(root, 3)
    (root / "i0002.png").unlink()
    with pytest.raises(DataError, match=r"1 files of the index .* such as i0002\.png"):
        build(index, root, cache)
    assert not cache.exists() or stores(cache) == []


def test_file_that_could_not_be_opened_is_tried_again(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Fixed permissions or networks change neither size nor time of a file."""
    index = write_images(root, 3)
    opened = Image.open

    def denied(path, *rest):
        if Path(path).name == "i0001.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(decode.Image, "open", denied)
        with contextlib.suppress(DataError):  # a row of `bad` or an error: either will do
            assert "Permission denied" in build(index, root, cache).bad["error"].iloc[0]
    repaired = build(index, root, cache)
    assert not len(repaired.bad)
    assert np.array_equal(repaired.images, reference(root, index, 8))


KILLED = """
import sys, time
from pathlib import Path
import pandas as pd
from skincancer.data.store import open_store
from skincancer.imaging.preprocessing import Preprocessing

def stop(done, total):
    print(done, flush=True)
    time.sleep(600)

index = pd.read_json(sys.argv[1], dtype=False)
open_store(index, Path(sys.argv[2]), Path(sys.argv[3]), Preprocessing(8, "stretch"), jobs=1, progress=stop)
"""


def test_killed_build_leaves_no_complete_store(root: Path, cache: Path, tmp_path: Path):
    index = write_images(root, 100)[["image_id", "image"]].assign(mask=None)
    index.to_json(tmp_path / "index.json")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "index.json"), str(root), str(cache)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "64\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    (left,) = stores(cache)
    assert ".tmp" in left
    assert (cache / "stores" / left / "images.npy").stat().st_size > 100 * 8 * 8 * 3

    built = []
    store = build(index, root, cache, progress=lambda done, total: built.append(done))
    assert built == [64, 100]
    assert stores(cache) == [store.folder.name], "what the killed build left is cleared away"
    assert ".tmp" not in store.folder.name
    assert np.array_equal(store.images, reference(root, index, 8))


def test_an_interrupted_build_cleans_up_itself(root: Path, cache: Path):
    index = write_images(root, 5)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(index, root, cache, progress=interrupt)
    assert stores(cache) == []
    assert np.array_equal(build(index, root, cache).images, reference(root, index, 8))


AT_ONCE = """
import os, sys, time
from pathlib import Path
import pandas as pd
from skincancer.data.store import open_store
from skincancer.imaging.preprocessing import Preprocessing

folder = Path(sys.argv[1])

def slow(done, total):
    (folder / f"built-{os.getpid()}").touch()
    time.sleep(0.4)

index = pd.read_json(folder / "index.json", dtype=False)
(folder / f"ready-{os.getpid()}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
store = open_store(index, Path(sys.argv[2]), Path(sys.argv[3]), Preprocessing(8, "stretch"), jobs=1, progress=slow)
print(store.folder.name, int(store.images.sum(dtype="int64")))
"""


def test_concurrent_processes_build_one_store(root: Path, cache: Path, tmp_path: Path):
    index = write_images(root, 200)[["image_id", "image"]].assign(mask=None)
    index.to_json(tmp_path / "index.json")
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path), str(root), str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (tmp_path / "go").touch()
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    total = int(reference(root, index, 8).sum(dtype="int64"))
    (name,) = stores(cache)
    assert outputs == {f"{name} {total}\n"}
    assert len(list(tmp_path.glob("built-*"))) == 1


def no_space(*arguments) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_at_the_third_write(monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = os.pwrite, []

    def pwrite(*arguments) -> int:
        calls.append(1)
        return no_space() if len(calls) == 3 else write(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)


def fail_to_allocate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", no_space)


@pytest.mark.parametrize("fail", [fail_to_allocate, fail_at_the_third_write])
def test_a_full_disk_leaves_nothing_and_a_later_build_works(root: Path, cache: Path, fail):
    index = write_images(root, 8)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch)
        with pytest.raises(DataError, match=r"disk under .*own cache is full: .* 8 images at 8 px .*SKINCANCER_CACHE"):
            build(index, root, cache)
    assert stores(cache) == []
    assert np.array_equal(build(index, root, cache).images, reference(root, index, 8))


def test_partial_writes_are_continued(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """write(2) may write fewer bytes than requested. No pixel may be missing then."""
    index = write_images(root, 4)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: write(file, bytes(content)[:100], offset))
    try:
        store = build(index, root, cache)
    except DataError:
        assert stores(cache) == []
    else:
        assert np.array_equal(store.images, reference(root, index, 8))


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written: .*SKINCANCER_CACHE"):
        build(write_images(root, 2), root, tmp_path / "file")
