"""Files over HTTP that go on where they broke off: a downloader for pooch, which by itself starts again from zero."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from skincancer.errors import ConfigError, DataError
from skincancer.system.files import check_space, disk_full, show_size
from skincancer.system.paths import mirror

WAITS = (1.0, 3.0, 10.0)  # seconds before each further try; a byte that arrives starts the count anew
TIMEOUTS = (10.0, 60.0)  # seconds to connect, and between two packets
CHUNK = 1 << 13  # bytes, what a broken connection loses at most
MB = 1_000_000
PASSING = (408, 429, 500, 502, 503, 504)  # status codes that another try may not see

Progress = Callable[[int, int], None]
T = TypeVar("T")


class Refused(DataError):
    """A server that answers, and does not give the file."""


class _Passing(Exception):
    """What another try may not see: a line that broke off, a server that is busy."""


def mirrored(url: str) -> str:
    """Return the URL to ask: the publisher's, or the same path and query under $SKINCANCER_MIRROR where that is set.

    Raises:
        ConfigError: the mirror is no http or https URL, or holds a password.
    """
    base = mirror()
    if base is None:
        return url
    if not re.match(r"https?://[^/]", base):
        raise ConfigError(
            f"SKINCANCER_MIRROR is {base!r}; it must be the http:// or https:// address of a server that holds the "
            "publisher's paths."
        )
    if "@" in urlsplit(base).netloc:  # addresses are printed and recorded
        raise ConfigError(
            "SKINCANCER_MIRROR holds a user or password; put them into ~/.netrc, which is used for its host."
        )
    parts = urlsplit(url)
    return base.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")


def read_json(url: str) -> Any:
    """Return what a URL answers as JSON.

    Raises:
        Refused, DataError: the server refuses, cannot be reached, or answers something else.
    """

    def step() -> Any:
        with _ask("GET", url) as response:
            if response.status_code != 200:
                raise _refusal(response)
            try:
                return response.json()
            except requests.exceptions.JSONDecodeError as error:
                raise DataError(f"{url} answered something else than JSON.") from error
            except requests.exceptions.RequestException as error:
                raise _Passing(_reason(error)) from error

    return _persist(url, step)


def remote_size(url: str) -> int | None:
    """Return the length of a file (bytes) without fetching it, or None where the server does not tell.

    Raises:
        Refused, DataError: there is no such file, or the server cannot be reached.
    """

    def step() -> int | None:
        with _ask("HEAD", url) as response:
            if response.status_code in (404, 410):
                raise _refusal(response)
            # others may refuse this method alone, as signed addresses do
            return _length(response) if response.status_code == 200 else None

    return _persist(url, step)


class ResumingDownloader:
    """Downloader for pooch: keeps what has arrived in a file of its own, from which a later call goes on.

    A request for the rest carries `Range`, and `If-Range` with the strong ETag or the date of the first answer (RFC 9110, 13.1.5 and
    14.2), so that a file that was changed meanwhile comes whole. A server that gives neither is asked for the rest all the same, and
    believed if it names the same total length. One that ignores `Range` starts from zero.

    Args:
        part: where what has arrived is kept; `<part>.json` beside it says of which file it is.
        size: length of the file (bytes), where the publisher tells.
        progress: called with (done, total) in MB.
    """

    def __init__(self, part: Path, size: int | None = None, progress: Progress | None = None) -> None:
        self.part, self.size, self.progress = part, size, progress
        self._notes = part.with_name(part.name + ".json")
        self._shown = -1

    def __call__(self, url: str, output_file: str, pooch: object = None) -> None:
        """Fetch a URL into `output_file`, which appears whole or not at all.

        Raises:
            Refused: the server does not give the file.
            DataError: the server cannot be reached, broke off too often, gave another length, or the disk is full.
        """
        _persist(url, lambda: self._step(url), self._arrived, lambda: bool(self._read_notes(url).get("resumes")))
        arrived = self._arrived()
        if self.size is not None and arrived != self.size:
            self._forget()
            raise DataError(
                f"{url} is {arrived} bytes long; the publisher says {self.size}. It was deleted; run again."
            )
        self._notes.unlink(missing_ok=True)
        os.replace(self.part, output_file)
        self._show(arrived, arrived, finished=True)

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _step(self, url: str) -> None:
        """Fetch what is missing, in one request."""
        notes = self._read_notes(url)
        have, total = self._arrived(), notes.get("total")
        if total is not None and have == total:
            return
        headers = {}
        if have:
            headers["Range"] = f"bytes={have}-"
            if notes.get("validator"):
                headers["If-Range"] = notes["validator"]
        with _ask("GET", url, headers) as response:
            if response.status_code == 416:
                self._forget()
                raise _Passing("the server has no such range of bytes")
            if response.status_code == 206:
                start, total = _range(response)
                if start != have or total != notes.get("total"):
                    self._forget()
                    raise _Passing("the file was changed on the server meanwhile")
            elif response.status_code == 200:
                have, total, validator = 0, _length(response), _validator(response)
                # a file that was changed comes whole from any server
                resumes = "Range" not in headers or validator != notes.get("validator")
                self._forget()
                self._notes.write_text(
                    json.dumps({"url": url, "total": total, "validator": validator, "resumes": resumes})
                )
            else:
                raise _refusal(response)
            if total is not None:
                check_space(self.part.parent, total - have, f"the rest of {self.part.stem}")
            self._write(response, have, total)

    def _read_notes(self, url: str) -> dict[str, Any]:
        """Return what is known of the part; a part of which nothing is known is no part of this file."""
        try:
            notes = json.loads(self._notes.read_text())
            if notes["url"] == url and notes["total"] is not None and self._arrived() <= notes["total"]:
                return dict(notes)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self._forget()
        return {}

    def _write(self, response: requests.Response, have: int, total: int | None) -> None:
        try:
            with open(self.part, "ab") as file:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    self._show(have, total if total is not None else self.size)
        except requests.exceptions.RequestException as error:
            raise _Passing(_reason(error)) from error
        except OSError as error:
            raise disk_full(error, self.part.parent, f"{self.part.stem} has come to {have / MB:.0f} MB") from error
        if total is not None and have != total:
            raise _Passing(f"the connection ended at {have} of {total} bytes")

    def _show(self, done: int, total: int | None, finished: bool = False) -> None:
        whole = math.ceil((total or done) / MB)
        # a callback is told of the end once
        shown = whole if finished else min(done // MB, whole - 1)
        if self.progress and total is not None and shown > self._shown:
            self._shown = shown
            self.progress(shown, whole)


def _ask(method: str, url: str, headers: dict[str, str] | None = None) -> requests.Response:
    """Send one request; a body that is packed on the way has neither the length nor the bytes of the file."""
    try:
        response = requests.request(
            method,
            url,
            headers={"Accept-Encoding": "identity", "User-Agent": "skincancer (python-requests)", **(headers or {})},
            stream=True,
            timeout=TIMEOUTS,
            allow_redirects=True,
        )
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
        raise ConfigError(f"{url} is no address: {error}") from error
    except requests.exceptions.RequestException as error:
        raise _Passing(_reason(error)) from error
    if response.status_code in PASSING:
        response.close()
        raise _Passing(f"it answered {response.status_code} ({response.reason})")
    return response


def _persist(
    url: str, step: Callable[[], T], arrived: Callable[[], int] = lambda: 0, resumes: Callable[[], bool] = lambda: False
) -> T:
    """Call until it succeeds; give up when every wait has passed without a new byte.

    Args:
        url: for messages.
        step: one try.
        arrived: bytes that are there.
        resumes: whether a later call can go on from what is there.
    """
    failures, most = 0, arrived()
    while True:
        try:
            return step()
        except _Passing as error:
            if arrived() > most:
                failures, most = 0, arrived()
            if failures == len(WAITS):
                left, kept = arrived(), ""
                if left and resumes():
                    kept = f" What has come ({show_size(left)}) is kept, and the next call goes on from there."
                elif left:
                    kept = " Its server lets no download go on, so that the next call begins this file anew."
                raise DataError(
                    f"{url} could not be fetched: {error}, {failures + 1} times in a row. Check the network (and the proxy, "
                    f"where there is one), or run again later.{kept}"
                ) from error
            time.sleep(WAITS[failures])
            failures += 1


def _refusal(response: requests.Response) -> Refused:
    """Say what a server answered, in its own words where they are short."""
    words = ""
    if "json" in response.headers.get("Content-Type", ""):
        try:
            words = str(response.json().get("message", "")).strip().removesuffix(".")[:500]
        except (requests.exceptions.RequestException, AttributeError):
            pass
    told = f": {words}." if words else "."
    return Refused(f"{response.url.split('?')[0]} answered {response.status_code} ({response.reason}){told}")


def _reason(error: Exception) -> str:
    """Return the shortest true reason that a request failed; the whole text of requests names its own objects."""
    text = str(error)
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    for pattern in (r"(Connection refused)", r"(Name or service not known|[Nn]ame resolution|getaddrinfo failed)"):
        if found := re.search(pattern, text):
            return found[1].lower()
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate cannot be checked"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy gives no connection"
    return "the connection broke off"


def _length(response: requests.Response) -> int | None:
    given = response.headers.get("Content-Length", "")
    packed = response.headers.get("Content-Encoding", "identity") != "identity"
    return int(given) if given.isdigit() and not packed else None


def _range(response: requests.Response) -> tuple[int, int | None]:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not found:
        return -1, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
