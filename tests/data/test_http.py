"""Downloads that go on where they broke off, against a local server that counts what it sends."""

import errno
import hashlib
import random
import socket
from collections import namedtuple
from pathlib import Path

import pooch
import pytest
from file_server import serve_files

from skincancer.data.download import http
from skincancer.data.download.http import Refused, ResumingDownloader, mirrored, read_json, remote_size
from skincancer.errors import ConfigError, DataError

CONTENT = random.Random(0).randbytes(3_500_000)
K = 65536


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(http, "WAITS", (0.0, 0.0, 0.0))
    with serve_files() as server:
        server.files["/x.zip"] = CONTENT
        yield server


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch /x.zip through pooch, as the project does; return the file."""

    def run(checksum=None, size=None, progress=None) -> Path:
        fetcher = pooch.create(
            path=tmp_path, base_url="", registry={"x.zip": checksum}, urls={"x.zip": f"{server.url}/x.zip"}
        )
        return Path(fetcher.fetch("x.zip", downloader=ResumingDownloader(tmp_path / "x.zip.part", size, progress)))

    return run


def test_a_whole_file_comes_in_one_request_and_progress_ends_once(server, fetch):
    shown = []
    assert fetch(progress=lambda done, total: shown.append((done, total))).read_bytes() == CONTENT
    assert [(one.status, one.sent) for one in server.log] == [(200, len(CONTENT))]
    assert shown[-1] == (4, 4)
    assert [done for done, _ in shown] == sorted({done for done, _ in shown})


def test_what_breaks_off_goes_on_with_range(server, fetch, tmp_path):
    server.cuts["/x.zip"] = [K * 16, K * 10]
    assert fetch(f"sha256:{hashlib.sha256(CONTENT).hexdigest()}").read_bytes() == CONTENT
    assert [(one.range, one.status) for one in server.log] == [
        (None, 200),
        (f"bytes={K * 16}-", 206),
        (f"bytes={K * 26}-", 206),
    ]
    assert all(one.if_range == f'"{hashlib.md5(CONTENT).hexdigest()}"' for one in server.log[1:])
    assert sum(one.sent for one in server.log) == len(CONTENT)  # no byte twice
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_a_line_that_breaks_often_but_brings_something_is_not_given_up(server, fetch):
    server.cuts["/x.zip"] = [K * 4] * 6
    assert fetch().read_bytes() == CONTENT
    assert len(server.log) == 7


def test_connections_that_break_early_still_bring_the_file_on(server, fetch):
    server.cuts["/x.zip"] = [40_000] * 6
    assert fetch().read_bytes() == CONTENT
    whole = [one.range for one in server.log]
    assert whole[0] is None
    assert all(range_ for range_ in whole[1:]), "every try kept something"


def test_a_server_without_ranges_is_not_said_to_go_on(server, fetch):
    server.ranges = False
    server.cuts["/x.zip"] = [K * 8] * 5
    for _ in range(2):  # a later call knows it before its first byte comes
        with pytest.raises(
            DataError, match=r"does not support resuming, so the next call downloads this file from its start"
        ):
            fetch()
        server.statuses["/x.zip"] = [503] * 4


def test_a_file_that_changed_does_not_make_its_server_one_without_ranges(server, fetch):
    server.cuts["/x.zip"] = [K * 16, 0, 0, 0]
    with pytest.raises(DataError):
        fetch()
    server.files["/x.zip"] = CONTENT[::-1]
    server.cuts["/x.zip"] = [K * 8, 0, 0, 0]
    with pytest.raises(DataError, match=r"524\.29 kB\) is kept"):
        fetch()
    server.log.clear()
    assert fetch().read_bytes() == CONTENT[::-1]
    assert [one.range for one in server.log] == [f"bytes={K * 8}-"]


def test_a_later_call_goes_on_from_what_an_earlier_one_kept(server, fetch, monkeypatch):
    server.cuts["/x.zip"] = [K * 32, 0, 0, 0]
    with pytest.raises(DataError, match=r"broke off, 4 times in a row.*2\.10 MB\) is kept"):
        fetch()
    server.log.clear()
    assert fetch().read_bytes() == CONTENT
    assert [(one.range, one.sent) for one in server.log] == [(f"bytes={K * 32}-", len(CONTENT) - K * 32)]


def test_an_interrupt_keeps_what_has_come(server, fetch, tmp_path):
    def interrupt(done, total):
        if done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(progress=interrupt)
    kept = (tmp_path / "x.zip.part").stat().st_size
    assert 1_000_000 <= kept < len(CONTENT)
    server.log.clear()
    assert fetch().read_bytes() == CONTENT
    assert [one.range for one in server.log] == [f"bytes={kept}-"]


def test_a_server_without_ranges_starts_from_zero(server, fetch):
    server.ranges = False
    server.cuts["/x.zip"] = [K]
    assert fetch().read_bytes() == CONTENT
    assert [(one.status, one.sent) for one in server.log] == [(200, K), (200, len(CONTENT))]


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_changed_meanwhile_is_never_joined_to_the_old_one(server, fetch, etags):
    server.etags = etags
    server.cuts["/x.zip"] = [K * 32, 0, 0, 0]
    with pytest.raises(DataError):
        fetch()
    server.files["/x.zip"] = bytes(3_000_000)  # without an ETag its length tells
    assert fetch().read_bytes() == bytes(3_000_000)


def test_a_file_that_became_shorter_than_what_has_come_starts_anew(server, fetch):
    server.etags = False
    server.cuts["/x.zip"] = [K * 32, 0, 0, 0]
    with pytest.raises(DataError):
        fetch()
    server.files["/x.zip"] = b"short"
    assert fetch().read_bytes() == b"short"
    assert 416 in [one.status for one in server.log]


def test_a_file_of_unknown_length_comes_whole(server, fetch, tmp_path):
    server.lengths = False
    assert fetch(size=len(CONTENT)).read_bytes() == CONTENT
    (tmp_path / "x.zip").unlink()
    with pytest.raises(DataError, match="has 3500000 bytes; the publisher states 3500001"):
        fetch(size=len(CONTENT) + 1)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_leaves_nothing(server, fetch, tmp_path):
    with pytest.raises(ValueError, match="hash"):
        fetch("md5:" + "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_is_not_used(server, fetch, tmp_path):
    (tmp_path / "x.zip.part").write_bytes(b"of a call of which nothing is known")
    assert fetch().read_bytes() == CONTENT
    assert [one.range for one in server.log] == [None]


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (202, "Accepted")])
def test_a_refusal_is_reported_at_once(server, fetch, status, reason):
    server.statuses["/x.zip"] = [status]
    server.messages["/x.zip"] = {"message": "a guestbook has to be signed"}
    with pytest.raises(Refused, match=rf"/x.zip answered {status} \({reason}\): a guestbook has to be signed"):
        fetch()
    assert len(server.log) == 1


def test_a_busy_server_is_asked_again(server, fetch):
    server.statuses["/x.zip"] = [500, 503, 429]
    assert fetch().read_bytes() == CONTENT
    assert [one.status for one in server.log] == [500, 503, 429, 200]
    server.statuses["/x.json"] = [500] * 4
    with pytest.raises(DataError, match=r"answered 500 \(Internal Server Error\), 4 times in a row"):
        read_json(f"{server.url}/x.json")


def test_no_server_is_reported_without_a_trace_of_the_library(monkeypatch):
    monkeypatch.setattr(http, "WAITS", (0.0,))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match="connection refused, 2 times in a row") as caught:
        remote_size(f"http://127.0.0.1:{port}/x.zip")
    assert "object at 0x" not in str(caught.value)
    assert "is kept" not in str(caught.value)


def test_room_is_looked_at_before_the_first_byte_is_written(server, fetch, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2_000_000))
    with pytest.raises(DataError, match=r"2\.00 MB free; the rest of x\.zip needs 3\.50 MB.*--data\.root"):
        fetch()
    assert not (tmp_path / "x.zip").exists()
    assert not (tmp_path / "x.zip.part").exists()


def test_a_disk_that_fills_up_keeps_what_fits(server, fetch, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, chunk):
            if self.file.tell() >= 1_000_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(chunk)

    monkeypatch.setattr(http, "open", lambda *arguments: Full(open(*arguments)), raising=False)
    with pytest.raises(DataError, match=r"is full .*rerun the command, which resumes"):
        fetch()
    monkeypatch.undo()
    kept = (tmp_path / "x.zip.part").stat().st_size
    assert 1_000_000 <= kept < len(CONTENT)
    server.log.clear()
    assert fetch().read_bytes() == CONTENT
    assert sum(one.sent for one in server.log) == len(CONTENT) - kept


def test_lengths_without_fetching(server):
    assert remote_size(f"{server.url}/x.zip") == len(CONTENT)
    assert [one.method for one in server.log] == ["HEAD"]
    with pytest.raises(Refused, match="404"):
        remote_size(f"{server.url}/y.zip")


def test_json(server):
    server.files |= {"/a?b=c": b'{"d": 1}', "/html": b"<html>"}
    server.cuts["/a?b=c"] = [3]
    assert read_json(f"{server.url}/a?b=c") == {"d": 1}
    with pytest.raises(DataError, match="did not answer with JSON"):
        read_json(f"{server.url}/html")


def test_the_mirror_stands_in_for_every_host(monkeypatch):
    assert mirrored("https://host/a/b?c=d") == "https://host/a/b?c=d"
    monkeypatch.setenv("SKINCANCER_MIRROR", "http://near/isic/")
    assert mirrored("https://host/a/b?c=d") == "http://near/isic/a/b?c=d"
    for wrong in ("near", "ftp://near", "http://", "https://me:secret@near"):
        monkeypatch.setenv("SKINCANCER_MIRROR", wrong)
        with pytest.raises(ConfigError, match="SKINCANCER_MIRROR") as caught:
            mirrored("https://host/a")
        assert "secret" not in str(caught.value)
