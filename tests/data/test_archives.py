"""Archives of strangers: what is unpacked, what is refused, and that nothing is left of what is refused."""

import errno
import stat
import struct
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from skincancer.data.download import archives
from skincancer.data.download.archives import BadArchive, unpack
from skincancer.errors import DataError


def pack(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def inside(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def test_one_top_folder_becomes_the_folder_and_litter_is_left_out(tmp_path):
    archive = pack(
        tmp_path / "a.zip",
        ("Top/", b""),
        ("Top/x.jpg", b"x"),
        ("Top/deep/y.jpg", b"y"),
        ("__MACOSX/Top/._x.jpg", b"litter"),
        ("Top/.DS_Store", b"litter"),
    )
    seen = []
    unpack(archive, tmp_path / "A", lambda done, total: seen.append((done, total)))
    assert inside(tmp_path / "A") == {"x.jpg": b"x", "deep/y.jpg": b"y"}
    assert seen == [(1, 2), (2, 2)]


def test_files_beside_each_other_stay_so(tmp_path):
    unpack(pack(tmp_path / "a.zip", ("x.jpg", b"x"), ("sub/y.jpg", b"y")), tmp_path / "A")
    assert inside(tmp_path / "A") == {"x.jpg": b"x", "sub/y.jpg": b"y"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x.jpg", "outside its folder: '../x.jpg'"),
        ("a/../../x.jpg", "outside"),
        ("/etc/x.jpg", "outside"),
        ("C:/x.jpg", "outside"),
        ("C:x.jpg", "outside"),
        ("..\\x.jpg", "outside"),
        ("x.jpg\0.txt", "outside"),
        ("good.jpg", "it contains 'good.jpg' and 'good.jpg', which are one file on disks that ignore case"),
        ("GOOD.jpg", "it contains 'good.jpg' and 'GOOD.jpg', which are one file on disks that ignore case"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_names_are_refused_before_anything_is_written(tmp_path, monkeypatch, name, message):
    here = tmp_path / "in" / "deep"
    here.mkdir(parents=True)
    if isinstance(name, str) and "\0" in name:  # ZipFile would cut the name: write it into the bytes
        archive = pack(here / "a.zip", ("good.jpg", b"good"), (name.replace("\0", "?"), b"hostile"))
        archive.write_bytes(archive.read_bytes().replace(b"x.jpg?.txt", b"x.jpg\0.txt"))
    else:
        archive = pack(here / "a.zip", ("good.jpg", b"good"), (name, b"../../../etc/passwd"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadArchive, match=r"a.zip was not unpacked") as caught:
        unpack(archive, here / "A")
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["good.jpg/x.jpg", "good.jpg/deep/x.jpg", f"{'x' * 300}.jpg", link("x.jpg")])
def test_exotic_names_leave_nothing_outside_and_nothing_half_unpacked(tmp_path, name):
    here = tmp_path / "in" / "deep"
    here.mkdir(parents=True)
    archive = pack(here / "a.zip", ("good.jpg", b"good"), (name, b"../../../etc/passwd"))
    if isinstance(name, str):
        with pytest.raises(BadArchive, match="cannot be unpacked"):
            unpack(archive, here / "A")
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [archive]
    else:
        unpack(archive, here / "A")
        assert inside(here / "A") == {"good.jpg": b"good", "x.jpg": b"../../../etc/passwd"}, "a file, not a link"
        assert not (here / "A" / "x.jpg").is_symlink()


def test_a_folder_entry_of_its_own_files_is_no_clash(tmp_path):
    archive = pack(tmp_path / "a.zip", ("a/", b""), ("a/b/", b""), ("a/b/x.jpg", b"x"), ("a/c.jpg", b"c"), ("A/", b""))
    unpack(archive, tmp_path / "A")
    assert inside(tmp_path / "A") == {"b/x.jpg": b"x", "c.jpg": b"c"}


def test_a_name_that_is_no_utf8_is_reported(tmp_path):
    archive = pack(tmp_path / "a.zip", ("ä.jpg", b"x"))
    archive.write_bytes(archive.read_bytes().replace("ä.jpg".encode(), b"\xff\xfe.jpg"))
    with pytest.raises(BadArchive, match=r"a.zip cannot be unpacked: 'utf-8' codec can't decode"):
        unpack(archive, tmp_path / "A")
    assert sorted(tmp_path.iterdir()) == [archive]


def resize(archive: Path, declared: int) -> None:
    """Write another uncompressed size into the central directory and the local header of the only file."""
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + offset
        content[at : at + 4] = struct.pack("<I", declared)
    archive.write_bytes(content)


def test_more_than_the_declared_size_is_never_written(tmp_path):
    archive = pack(tmp_path / "a.zip", ("x.jpg", bytes(10_000_000)), method=zipfile.ZIP_DEFLATED)
    resize(archive, 1000)
    with pytest.raises(BadArchive, match="Bad CRC-32"):
        unpack(archive, tmp_path / "A")
    assert sorted(tmp_path.iterdir()) == [archive]


def test_a_bomb_that_says_so_is_refused(tmp_path):
    archive = pack(tmp_path / "a.zip", ("x.jpg", bytes(10_000_000)), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadArchive, match=r"unpacks to 10000000 bytes from .* more than 100 times"):
        unpack(archive, tmp_path / "A")
    assert sorted(tmp_path.iterdir()) == [archive]


def test_a_damaged_archive_leaves_nothing(tmp_path):
    archive = pack(tmp_path / "a.zip", ("good.jpg", b"good" * 100), ("x.jpg", b"abcdefgh" * 100))
    archive.write_bytes(archive.read_bytes().replace(b"abcdefgh", b"abcdEfgh", 1))
    with pytest.raises(BadArchive, match=r"Bad CRC-32 for file 'x.jpg'"):
        unpack(archive, tmp_path / "A")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadArchive, match="not a zip archive"):
        unpack(archive, tmp_path / "A")
    assert sorted(tmp_path.iterdir()) == [archive]


def test_what_is_no_archive_is_reported_by_its_beginning(tmp_path):
    page = tmp_path / "a.zip"
    page.write_bytes(b"<!DOCTYPE html><html>log in first</html>")
    with pytest.raises(BadArchive, match=r"not a zip archive; it begins with b'<!DOCTYPE html"):
        unpack(page, tmp_path / "A")
    with pytest.raises(BadArchive, match="contains no file"):
        unpack(pack(tmp_path / "b.zip", ("folder/", b"")), tmp_path / "B")


def test_an_encrypted_file_is_reported(tmp_path):
    archive = pack(tmp_path / "a.zip", ("x.jpg", b"x"))
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(BadArchive, match=r"'x.jpg'.* is encrypted"):
        unpack(archive, tmp_path / "A")


def test_room_is_looked_at_first_and_a_full_disk_is_reported(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip", ("x.jpg", b"x" * 1000))
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: namedtuple("usage", "free")(999))
        with pytest.raises(DataError, match=r"kB free; unpacking a\.zip needs"):
            unpack(archive, tmp_path / "A")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match="is full") as caught:
        unpack(archive, tmp_path / "A")
    assert not isinstance(caught.value, BadArchive)
    assert sorted(tmp_path.iterdir()) == [archive]


def test_what_a_killed_call_left_is_cleared(tmp_path):
    (tmp_path / "A.tmp").mkdir()
    (tmp_path / "A.tmp" / "half.jpg").write_bytes(b"half")
    unpack(pack(tmp_path / "a.zip", ("x.jpg", b"x")), tmp_path / "A")
    assert inside(tmp_path / "A") == {"x.jpg": b"x"}
    assert not (tmp_path / "A.tmp").exists()
