"""`prepare NAME --download`: whole data sets from a local server in the publishers' place, then read by their readers."""

import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple

import pytest
from file_server import path_of, serve_files
from PIL import Image

from skincancer import prepare
from skincancer.data.catalog import DATASETS
from skincancer.data.download import http, publisher
from skincancer.data.download.publisher import download, download_root, must_accept
from skincancer.data.index import find_root, load_index
from skincancer.errors import ConfigError, DataError

ISIC, HAM = DATASETS["isic2018_task1"], DATASETS["ham10000"]
DATAVERSE = "/api/datasets/:persistentId/?persistentId=doi:10.7910/DVN/DBW86T"
SMALL = ["--data.size=32", "--data.split=official"]


def picture(kind: str, shade: int) -> bytes:
    """An image, or a mask with one square."""
    file = io.BytesIO()
    if kind == "JPEG":
        Image.new("RGB", (48, 36), (shade, 90, 70)).save(file, kind)
    else:
        mask = Image.new("L", (48, 36))
        mask.paste(255, (10, 10, 10 + shade % 20, 20))
        mask.save(file, kind)
    return file.getvalue()


def pack(top: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return packed.getvalue()


def isic2018() -> dict[str, bytes]:
    """ISIC 2018 Task 1 of nine images, by the paths of its publisher; each archive holds a folder of its own name."""
    files = {}
    for number, part in enumerate(("Training", "Validation", "Test")):
        ids = [f"ISIC_{number}{i:06d}" for i in range((6, 2, 1)[number])]
        images, masks = f"ISIC2018_Task1-2_{part}_Input", f"ISIC2018_Task1_{part}_GroundTruth"
        pictures = {f"{i}.jpg": picture("JPEG", 100 + n) for n, i in enumerate(ids)}
        files[f"/2018/{images}.zip"] = pack(f"{images}/", pictures | {"LICENSE.txt": b"CC-0"})
        truths = {f"{i}_segmentation.png": picture("PNG", 5 + n) for n, i in enumerate(ids)}
        files[f"/2018/{masks}.zip"] = pack(f"{masks}/", truths)
    return files


def ham10000(licence: object = "CC BY-NC 4.0", terms: str = "", shift: int = 0) -> dict[str, bytes]:
    """HAM10000 of 42 images: the listing of the Dataverse API, and its files by id; images lie flat in their archives."""
    rows, images = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"], [{}, {}]
    masks = {}
    for number in range(42):
        image_id, dx = f"ISIC_{number:07d}", HAM.classes[number % 7]
        rows.append(f"HAM_{number:07d},{image_id},{dx},histo,50.0,male,back,vidir")
        images[number % 2][f"{image_id}.jpg"] = picture("JPEG", number * 5 + shift)
        masks[f"{image_id}_segmentation.png"] = picture("PNG", number)
    metadata = "\n".join(rows).encode()
    contents = {
        "HAM10000_metadata.tab": (4338392, metadata),
        "HAM10000_images_part_1.zip": (3172585, pack("", images[0])),
        "HAM10000_images_part_2.zip": (3172584, pack("", images[1])),
        "HAM10000_segmentations_lesion_tschandl.zip": (
            3838943,
            pack("HAM10000_segmentations_lesion_tschandl/", masks),
        ),
        "ISIC2018_Task3_Test_Images.zip": (3855824, b"never asked for"),
    }
    listing = []
    for name, (number, content) in contents.items():
        file = {"id": number, "filename": name, "filesize": len(content), "md5": hashlib.md5(content).hexdigest()}
        if name.endswith(
            ".tab"
        ):  # the Dataverse's own format is of another length than the upload, the md5 the upload's
            file |= {"filesize": 7, "originalFileFormat": "text/csv", "originalFileSize": len(content)}
        listing.append({"label": name, "restricted": False, "dataFile": file})
    version = {"files": listing, "license": licence, "termsOfUse": terms}
    answer = {"status": "OK", "data": {"latestVersion": version}}
    paths = {
        f"/api/access/datafile/{number}" + ("?format=original" if name.endswith(".tab") else ""): content
        for name, (number, content) in contents.items()
    }
    return {DATAVERSE: json.dumps(answer).encode(), **paths}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(http, "WAITS", (0.0, 0.0, 0.0))
    with serve_files() as server:
        monkeypatch.setenv("SKINCANCER_MIRROR", server.url)
        yield server


def fetch(entry, root, accept=False):
    said = []
    try:
        download(entry, root, accept=accept, say=said.append, progress=lambda _: lambda *_: None)
    finally:
        fetch.said = "\n".join(said)
    return fetch.said


def test_isic_2018_from_nothing_to_a_prepared_store(server, tmp_path, capsys):
    server.files |= isic2018()
    root = tmp_path / "isic"
    assert prepare.main(["isic2018_task1", "--download", f"--data.root={root}", *SMALL]) == 0
    printed, complaints = capsys.readouterr()
    assert complaints == ""
    assert printed.index("licence: CC0") < printed.index("cite: Codella") < printed.index("downloading (1/6)")
    assert re.search(r"images +│ 9, of which 0 cannot be read", printed)
    assert sorted(path.name for path in root.iterdir()) == sorted(
        [".download.lock", "downloads.json", *(source.target for source in ISIC.downloads)]
    )
    index, _ = load_index(ISIC, root)
    assert index["part"].value_counts().to_dict() == {"train": 6, "val": 2, "test": 1}
    assert index["mask"].notna().all()
    record = json.loads((root / "downloads.json").read_text())
    for path, content in server.files.items():
        entry = record[path.rpartition("/")[2]]
        assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
        assert entry["url"] == server.url + path
        assert entry["published_checksum"] is None
    assert len(server.asked("GET")) == 6

    server.log.clear()
    assert prepare.main(["isic2018_task1", "--download", f"--data.root={root}", *SMALL]) == 0
    assert "nothing is downloaded" in capsys.readouterr().out
    assert server.log == []


def test_ham10000_by_the_listing_of_its_dataverse(server, tmp_path, capsys, monkeypatch):
    server.files |= ham10000()
    monkeypatch.setenv("SKINCANCER_DATA", str(tmp_path / "pool"))
    assert prepare.main(["ham10000", "--download", "--data.size=32"]) == 0
    printed = capsys.readouterr().out
    assert "the publisher's terms: CC BY-NC 4.0" in printed
    root = tmp_path / "pool" / "ham10000"
    index, classes = load_index(HAM, root)
    assert (len(index), classes, index["mask"].notna().all()) == (42, HAM.classes, True)
    assert server.asked(path="/api/access/datafile/3855824") == []
    assert server.asked("HEAD") == []  # the listing tells the lengths
    assert len(server.log) == 5
    record = json.loads((root / "downloads.json").read_text())
    assert record["HAM10000_metadata"]["published_checksum"].startswith("md5:")


def test_a_download_that_breaks_off_goes_on_and_half_a_data_set_is_none(server, tmp_path):
    server.files |= isic2018()
    paths = [path_of(source.url) for source in ISIC.downloads]
    ids = ("ISIC_1000000", "ISIC_1000001")
    pictures = {f"{i}.jpg": picture("JPEG", 9) for i in ids}
    server.files[paths[3]] = pack("", pictures | {"noise": random.Random(0).randbytes(300_000)})
    server.cuts[paths[3]] = [4 * http.CHUNK, 0, 0, 0]
    server.statuses[paths[2]] = [500, 503]
    with pytest.raises(DataError, match="4 times in a row"):
        fetch(ISIC, tmp_path)
    with pytest.raises(
        DataError, match=r"is empty[\s\S]*--download --data\.root"
    ):  # two whole parts are not offered as a data set
        find_root(ISIC, str(tmp_path), None)
    server.log.clear()
    fetch(ISIC, tmp_path)
    asked = server.asked("GET")
    assert [one.path for one in asked] == paths[3:]  # what was there is not fetched again
    assert [one.range for one in asked] == [f"bytes={4 * http.CHUNK}-", None, None]
    assert asked[0].sent == len(server.files[paths[3]]) - 4 * http.CHUNK
    assert len(load_index(ISIC, tmp_path)[0]) == 9


def test_a_wrong_checksum_is_deleted_and_never_taken(server, tmp_path):
    server.files |= ham10000()
    good = server.files["/api/access/datafile/3172585"]
    server.files["/api/access/datafile/3172585"] = bytes([good[0] ^ 1]) + good[1:]
    with pytest.raises(DataError, match=r"HAM10000_images_part_1\.zip .* is not the published file.*md5:"):
        fetch(HAM, tmp_path)
    assert not list(tmp_path.rglob("*part_1*"))
    server.files["/api/access/datafile/3172585"] = good
    fetch(HAM, tmp_path)
    assert len(load_index(HAM, tmp_path)[0]) == 42


def test_what_came_before_is_what_may_come_again(server, tmp_path):
    server.files |= isic2018()
    fetch(ISIC, tmp_path)
    source = ISIC.downloads[1]
    kept = tmp_path / "elsewhere"
    (tmp_path / source.target).rename(kept)
    old = server.files[path_of(source.url)]
    server.files[path_of(source.url)] = pack("", {f"ISIC_000000{i}.jpg": picture("JPEG", 1 + i) for i in range(6)})
    with pytest.raises(DataError, match=r"differs from the file of 20.*delete its entry in downloads.json"):
        fetch(ISIC, tmp_path)
    assert not (tmp_path / source.target).exists()
    new = server.files[path_of(source.url)]
    server.files[path_of(source.url)] = old
    server.log.clear()
    fetch(ISIC, tmp_path)
    assert len(server.asked("GET")) == 1
    record = json.loads((tmp_path / "downloads.json").read_text())
    assert len(record) == 6
    assert sorted(path.name for path in kept.iterdir()) == sorted(
        path.name for path in (tmp_path / source.target).iterdir()
    )

    shutil.rmtree(
        tmp_path / source.target
    )  # whoever wants the publisher's new file takes the old one out of the record
    server.files[path_of(source.url)] = new
    del record[source.file]
    (tmp_path / "downloads.json").write_text(json.dumps(record))
    fetch(ISIC, tmp_path)
    record = json.loads((tmp_path / "downloads.json").read_text())
    assert (len(record), record[source.file]["sha256"]) == (6, hashlib.sha256(new).hexdigest())


def test_a_file_that_its_publisher_replaced_is_reported(server, tmp_path):
    server.files |= ham10000()
    fetch(HAM, tmp_path)
    shutil.rmtree(tmp_path / "HAM10000_images_part_1")
    server.files |= ham10000(shift=1)  # other files, and a listing that agrees with them
    with pytest.raises(DataError, match=r"part_1\.zip .* differs from the file of 20"):
        fetch(HAM, tmp_path)
    assert not list(tmp_path.rglob("*part_1*"))


def test_files_that_no_download_put_there_are_left_alone(server, tmp_path):
    (tmp_path / "HAM10000_images").mkdir()
    assert "contains files from another source, which are used unchanged" in fetch(HAM, tmp_path)
    assert server.log == []
    assert not (tmp_path / ".download").exists()


def test_a_hostile_or_damaged_archive_leaves_no_data_set(server, tmp_path):
    server.files |= isic2018()
    path, root = path_of(ISIC.downloads[2].url), tmp_path / "deep" / "root"
    for content, message in (
        (pack("", {"../../../evil.jpg": b"x"}), "outside its folder"),
        (pack("", {"a": b"x", "a/b.jpg": b"x"}), "cannot be unpacked: .*Not a directory"),
        (pack("", {f"{'x' * 300}.jpg": b"x"}), "cannot be unpacked: .*File name too long"),
        (b"<html>log in</html>", "not a zip archive; it begins with b'<html>"),
    ):
        server.files[path] = content
        with pytest.raises(DataError, match=rf"{message}[\s\S]* deleted"):
            fetch(ISIC, root)
        assert not list(tmp_path.rglob("*evil*"))
        assert [entry.name for entry in root.iterdir() if not entry.name.startswith(".")] == []
        assert not list(root.rglob(ISIC.downloads[2].file))


def visible(root):
    return [entry.name for entry in root.iterdir() if not entry.name.startswith(".")]


@pytest.mark.parametrize(
    ("number", "content", "message"),
    [
        (0, {"x.jpg": b"x", "a.txt": b"x"}, r"contains no \*_segmentation\.png, but a\.txt, x\.jpg"),
        (1, {"readme.txt": b"moved"}, r"contains no \*\.jpg, but readme\.txt"),
        (1, {f"{i}.txt": b"" for i in range(9)}, r"0\.txt, .*4\.txt and 4 more files"),
    ],
)
def test_another_archive_is_refused_by_name_and_not_kept(server, tmp_path, number, content, message):
    server.files |= isic2018()
    source = ISIC.downloads[number]
    path = path_of(source.url)
    right = server.files[path]
    server.files[path] = pack("", content)
    with pytest.raises(DataError, match=rf"{source.file} from http.*{message}.*deleted; rerun.*SKINCANCER_MIRROR"):
        fetch(ISIC, tmp_path)
    assert visible(tmp_path) == []
    server.files[path] = right
    server.log.clear()
    fetch(ISIC, tmp_path)
    assert [one.path for one in server.asked("GET")] == [path_of(one.url) for one in ISIC.downloads[number:]]
    assert len(load_index(ISIC, tmp_path)[0]) == 9


def test_archives_that_do_not_go_together_make_no_data_set(server, tmp_path):
    server.files |= isic2018()
    path = path_of(ISIC.downloads[1].url)
    right = server.files[path]
    server.files[path] = server.files[path_of(ISIC.downloads[3].url)]
    for _ in range(2):
        with pytest.raises(
            DataError,
            match=r"published layout of ISIC 2018 Task 1.*of the same subset\. .*delete that folder and rerun",
        ):
            fetch(ISIC, tmp_path)
        assert visible(tmp_path) == []
    for source in ISIC.downloads:  # a call that was killed before it looked
        (tmp_path / ".download" / "ready" / source.target).rename(tmp_path / source.target)
    with pytest.raises(DataError, match="delete that folder"):
        fetch(ISIC, tmp_path)
    assert visible(tmp_path) == []
    server.files[path] = right
    shutil.rmtree(tmp_path / ".download")
    fetch(ISIC, tmp_path)
    assert len(load_index(ISIC, tmp_path)[0]) == 9


def test_what_stands_there_and_is_not_the_data_set_is_reported(server, tmp_path):
    server.files |= isic2018()
    fetch(ISIC, tmp_path)
    for file in (tmp_path / ISIC.downloads[1].target).iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"Delete the wrong files and their entries in downloads\.json"):
        fetch(ISIC, tmp_path)


def test_a_missing_file_is_reported_before_anything_is_fetched(server, tmp_path):
    server.files |= isic2018()
    gone = path_of(ISIC.downloads[5].url)
    del server.files[gone]
    with pytest.raises(
        DataError, match=rf"{re.escape(gone)} answered 404 .*SKINCANCER_MIRROR.*download it yourself: https://challenge"
    ):
        fetch(ISIC, tmp_path)
    assert server.asked("GET") == []


def test_a_guestbook_is_reported_in_the_words_of_the_server(server, tmp_path):
    server.files |= ham10000()
    server.statuses["/api/access/datafile/3172585"] = [400]
    server.messages["/api/access/datafile/3172585"] = {"message": "without the required Guestbook response"}
    with pytest.raises(DataError, match=r"answered 400.*Guestbook response.*download it yourself: Harvard Dataverse"):
        fetch(HAM, tmp_path)


def test_a_disk_too_small_is_reported_before_anything_is_fetched(server, tmp_path, monkeypatch):
    server.files |= isic2018()
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("usage", "free")(5000))
    with pytest.raises(DataError, match=r"has 5\.00 kB free; the data set plus one archive needs [\d.]+ kB"):
        fetch(ISIC, tmp_path)
    assert server.asked("GET") == []


def test_terms_of_use_must_be_accepted_and_creative_commons_need_not(server, tmp_path, capsys):
    for licence in ("CC0", "CC BY-NC 4.0", "CC-BY 4.0", "see http://creativecommons.org/licenses/by-nc/4.0"):
        assert not must_accept(licence)
    for licence in ("ISIC Archive terms of use", "for research only", "ACCUSED BYSTANDER", ""):
        assert must_accept(licence)

    server.files |= ham10000(licence={"name": "Custom"}, terms="You will not sell them.")
    command = ["ham10000", "--download", f"--data.root={tmp_path}", "--data.size=32"]
    assert prepare.main(command) == 2
    seen = capsys.readouterr()
    assert "You will not sell them." in seen.out
    assert "add --accept-licence" in seen.err
    assert [one.path for one in server.log] == [DATAVERSE]
    assert prepare.main([*command, "--accept-licence"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files[0].update(restricted=True), "is restricted; request access"),
        (lambda files: files.pop(1), "no longer has the file HAM10000_images_part_1.zip"),
        (lambda files: files[0].pop("dataFile"), "did not answer with the files of a data set"),
    ],
)
def test_a_listing_that_lacks_something_is_reported(server, tmp_path, change, message):
    answer = json.loads(ham10000()[DATAVERSE])
    change(answer["data"]["latestVersion"]["files"])
    server.files[DATAVERSE] = json.dumps(answer).encode()
    with pytest.raises(DataError, match=message):
        fetch(HAM, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["malignant_vs_benign", "--download"],
            r"account or a request. Download it yourself: Kaggle, https://www\.kaggle\.com",
        ),
        (["ph2", "--download"], r"Download it yourself: On request at https://www\.fc\.up\.pt/addi/"),
        (["demo", "--download"], "demo has nothing to download"),
        (["folder", "--download"], "folder has nothing to download. Set --data.root to your folder"),
        (["csv", "--download"], "csv has nothing to download"),
        (["ham10000", "--accept-licence"], "--accept-licence requires --download"),
        (
            ["ham10000", "--download", "--data.root=/proc/x"],
            r"/proc/x cannot be created: /proc takes no new folder\. Use a writable folder",
        ),
        (["ham10000", "--download", f"--data.root={__file__}/x"], r"test_download\.py takes no new folder \(Not a dir"),
        (["ham10000", "--download", f"--data.root={__file__}"], "is a file; use a folder for --download"),
    ],
)
def test_what_cannot_be_downloaded_says_what_to_do(arguments, message, capsys):
    assert prepare.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_no_server_is_an_error_of_one_paragraph(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(http, "WAITS", (0.0,))
    monkeypatch.setenv("SKINCANCER_MIRROR", "http://127.0.0.1:9")
    assert prepare.main(["isic2016_task1", "--download", f"--data.root={tmp_path / 'x'}"]) == 2
    message = capsys.readouterr().err
    assert "connection refused, 2 times in a row" in message
    assert "Traceback" not in message


def test_two_downloads_at_once_fetch_once(server, tmp_path):
    server.files |= isic2018()
    said: list[str] = []
    gate = threading.Event()

    def first(line: str) -> None:
        gate.wait(10) if line.startswith("licence") else None

    def run(say):
        download(ISIC, tmp_path, accept=False, say=say, progress=lambda _: lambda *_: None)

    holding = threading.Thread(target=run, args=(first,))
    holding.start()
    while not (tmp_path / ".download.lock").exists():
        time.sleep(0.01)
    second = threading.Thread(target=run, args=(said.append,))
    second.start()
    while not said:
        time.sleep(0.01)
    gate.set()
    holding.join()
    second.join()
    assert "waiting for another download" in said[0]
    assert "nothing is downloaded" in said[1]
    assert len(server.asked("GET")) == 6


def test_ctrl_c_leaves_what_the_next_call_goes_on_from(server, tmp_path, capsys, monkeypatch):
    server.files |= isic2018()
    unpack = publisher.unpack

    def interrupted(archive, *rest):
        if "Validation_Input" in archive.name:
            raise KeyboardInterrupt
        unpack(archive, *rest)

    monkeypatch.setattr(publisher, "unpack", interrupted)
    command = ["isic2018_task1", "--download", f"--data.root={tmp_path / 'x'}", *SMALL]
    assert prepare.main(command) == 130
    assert "rerun the same command to resume" in capsys.readouterr().out
    monkeypatch.setattr(publisher, "unpack", unpack)
    server.log.clear()
    assert prepare.main(command) == 0
    assert len(server.asked("GET")) == 2  # the interrupted archive had come whole


def test_a_call_killed_between_the_last_moves_is_completed(server, tmp_path):
    server.files |= isic2018()
    fetch(ISIC, tmp_path)
    waiting = tmp_path / ".download"
    (waiting / "ready").mkdir(parents=True)
    (tmp_path / "downloads.json").rename(waiting / "downloads.json")
    moved = ISIC.downloads[0].target
    (tmp_path / moved).rename(waiting / "ready" / moved)
    server.log.clear()
    fetch(ISIC, tmp_path)
    assert (server.log, waiting.exists()) == ([], False)
    assert (tmp_path / "downloads.json").is_file()
    assert len(load_index(ISIC, tmp_path)[0]) == 9


def test_a_broken_record_is_reported(server, tmp_path):
    (tmp_path / "downloads.json").write_text('{"a": 1}')
    server.files |= isic2018()
    with pytest.raises(DataError, match=r"downloads\.json is not a record of downloads"):
        fetch(ISIC, tmp_path)


def test_the_place_is_where_the_data_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert download_root(HAM, "given", "pool") == tmp_path / "given"
    assert download_root(HAM, None, "pool") == tmp_path / "pool" / "ham10000"
    assert download_root(HAM, None, None) == tmp_path / "data" / "ham10000"
    (tmp_path / "data" / "ham10000" / "images").mkdir(parents=True)
    assert download_root(HAM, None, "pool") == tmp_path / "data" / "ham10000"  # as `find_root` will find it
    with pytest.raises(ConfigError, match="is a file"):
        download_root(HAM, __file__, None)


def test_missing_data_say_that_they_can_be_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"python -m skincancer\.prepare ham10000 --download\n"):
        find_root(HAM, None, None)
    with pytest.raises(DataError, match=r"--download --data\.root 'my data'\n"):
        find_root(HAM, "my data", None)
    with pytest.raises(DataError) as caught:
        find_root(DATASETS["ph2"], None, None)
    assert "--download" not in str(caught.value)


@pytest.mark.parametrize(
    "entry", [entry for entry in DATASETS.values() if entry.downloads], ids=lambda entry: entry.name
)
def test_every_source_of_the_catalog_is_what_the_texts_say(entry):
    assert len({source.target for source in entry.downloads}) == len({source.file for source in entry.downloads})
    for source in entry.downloads:
        assert source.url.startswith("doi:10.7910/") or source.url.endswith("/" + source.file)
        assert "/" not in source.target
        assert source.file.endswith((".zip", ".csv")) or source.url.startswith("doi:")
        stem = source.target.removesuffix(".csv")
        pattern = re.sub(r"Training|Validation|Test(_v2)?", "(Training|Validation|Test|<Part>|{})", stem)
        assert re.search(pattern, entry.how_to_get), source


def test_the_verb_starts_without_heavy_packages():
    code = (
        "import sys, skincancer.prepare, skincancer.data.download.publisher;"
        "print([m for m in ('pandas', 'torch', 'joblib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
