"""HTTP downloads that resume after an interruption, as a downloader for pooch."""

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

# Seconds before each retry. Every new byte resets the count.
WAITS = (1.0, 3.0, 10.0)
# Seconds to connect, and between two packets.
TIMEOUTS = (10.0, 60.0)
# Largest number of bytes that a broken connection loses.
CHUNK = 1 << 13
MB = 1_000_000
# Status codes of temporary problems.
TEMPORARY = (408, 429, 500, 502, 503, 504)

Progress = Callable[[int, int], None]
T = TypeVar("T")


class Refused(DataError):
    """Refusal of the server to send a file."""


class _Temporary(Exception):
    """Temporary error, such as a broken connection or a busy server."""


def mirrored(url: str) -> str:
    """Return the URL of a file, under $SKINCANCER_MIRROR if that is set.

    Path and query of the URL stay the same.

    Raises:
        ConfigError: The mirror is not an http or https URL, or contains a password.
    """
    base = mirror()
    if base is None:
        return url
    if not re.match(r"https?://[^/]", base):
        raise ConfigError(
            f"SKINCANCER_MIRROR is {base!r}; expected the http:// or https:// URL of a server with the publisher's "
            "paths."
        )
    # URLs are printed and recorded.
    if "@" in urlsplit(base).netloc:
        raise ConfigError(
            "SKINCANCER_MIRROR contains a user or password; write them to ~/.netrc, which is used for its host."
        )
    parts = urlsplit(url)
    return base.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")


def read_json(url: str) -> Any:
    """Return the JSON answer of a URL.

    Raises:
        Refused, DataError: The server refuses, cannot be reached, or does not answer with JSON.
    """

    def step() -> Any:
        with _ask("GET", url) as response:
            if response.status_code != 200:
                raise _refusal(response)
            try:
                return response.json()
            except requests.exceptions.JSONDecodeError as error:
                raise DataError(f"{url} did not answer with JSON.") from error
            except requests.exceptions.RequestException as error:
                raise _Temporary(_reason(error)) from error

    return _retry(url, step)


def remote_size(url: str) -> int | None:
    """Return the size of a remote file in bytes, None if unknown.

    Raises:
        Refused, DataError: The file does not exist, or the server cannot be reached.
    """

    def step() -> int | None:
        with _ask("HEAD", url) as response:
            if response.status_code in (404, 410):
                raise _refusal(response)
            # Servers may refuse HEAD and still allow GET, as for signed URLs.
            return _length(response) if response.status_code == 200 else None

    return _retry(url, step)


class ResumingDownloader:
    """Downloader for pooch that keeps received bytes, from which a later call resumes.

    The request for the remaining bytes has `Range`, and `If-Range` with the strong ETag or the date of the first answer (RFC 9110,
    13.1.5 and 14.2), so that the server sends the complete file if it has changed. If the server gave neither, its answer is accepted
    if the total size is the same. If the server ignores `Range`, the download restarts from zero.

    Args:
        part: File for the received bytes; `<part>.json` records URL, size and validator.
        size: Published size of the file in bytes, None if unknown.
        progress: Called with (done, total) in MB.
    """

    def __init__(self, part: Path, size: int | None = None, progress: Progress | None = None) -> None:
        self.part, self.size, self.progress = part, size, progress
        self._notes = part.with_name(part.name + ".json")
        self._shown_mb = -1

    def __call__(self, url: str, output_file: str, pooch: object = None) -> None:
        """Download a URL to `output_file`, completely or not at all.

        Raises:
            Refused: The server refuses to send the file.
            DataError: The server cannot be reached, the connection broke too often, the size is wrong, or the disk is full.
        """
        _retry(url, lambda: self._step(url), self._arrived, lambda: bool(self._read_notes(url).get("resumes")))
        arrived = self._arrived()
        if self.size is not None and arrived != self.size:
            self._forget()
            raise DataError(
                f"{url} has {arrived} bytes; the publisher states {self.size}. It was deleted; rerun to download it again."
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
        """Request the missing bytes once."""
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
                raise _Temporary("the server does not have the requested range of bytes")
            if response.status_code == 206:
                start, total = _range(response)
                if start != have or total != notes.get("total"):
                    self._forget()
                    raise _Temporary("the file has changed on the server")
            elif response.status_code == 200:
                have, total, validator = 0, _length(response), _validator(response)
                # A changed file is sent completely, also by servers that support ranges.
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
        """Read the record of the received bytes, or delete them without a valid record."""
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
            raise _Temporary(_reason(error)) from error
        except OSError as error:
            raise disk_full(
                error, self.part.parent, f"receiving {self.part.stem} ({have / MB:.0f} MB so far)"
            ) from error
        if total is not None and have != total:
            raise _Temporary(f"the connection ended at {have} of {total} bytes")

    def _show(self, done: int, total: int | None, finished: bool = False) -> None:
        whole = math.ceil((total or done) / MB)
        # Only the finished download reports the last megabyte.
        megabytes = whole if finished else min(done // MB, whole - 1)
        if self.progress and total is not None and megabytes > self._shown_mb:
            self._shown_mb = megabytes
            self.progress(megabytes, whole)


def _ask(method: str, url: str, headers: dict[str, str] | None = None) -> requests.Response:
    """Send one request without compression.

    A compressed body has neither the size nor the bytes of the file.
    """
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
        raise ConfigError(f"{url} is not a valid URL: {error}") from error
    except requests.exceptions.RequestException as error:
        raise _Temporary(_reason(error)) from error
    if response.status_code in TEMPORARY:
        response.close()
        raise _Temporary(f"it answered {response.status_code} ({response.reason})")
    return response


def _retry(
    url: str, step: Callable[[], T], arrived: Callable[[], int] = lambda: 0, resumes: Callable[[], bool] = lambda: False
) -> T:
    """Repeat a step until it succeeds, or no byte arrives in all retries.

    Args:
        url: URL for messages.
        step: Function to repeat.
        arrived: Returns the number of received bytes.
        resumes: Returns whether a later call can resume from the received bytes.
    """
    failures, most = 0, arrived()
    while True:
        try:
            return step()
        except _Temporary as error:
            if arrived() > most:
                failures, most = 0, arrived()
            if failures == len(WAITS):
                left, kept = arrived(), ""
                if left and resumes():
                    kept = f" The received part ({show_size(left)}) is kept, and the next call resumes from it."
                elif left:
                    kept = " The server does not support resuming, so the next call downloads this file from its start."
                raise DataError(
                    f"{url} could not be downloaded: {error}, {failures + 1} times in a row. Check the network (and the "
                    f"proxy, if you use one), or rerun later.{kept}"
                ) from error
            time.sleep(WAITS[failures])
            failures += 1


def _refusal(response: requests.Response) -> Refused:
    """Describe the answer of a server, with its own message if short."""
    words = ""
    if "json" in response.headers.get("Content-Type", ""):
        try:
            words = str(response.json().get("message", "")).strip().removesuffix(".")[:500]
        except (requests.exceptions.RequestException, AttributeError):
            pass
    message = f": {words}." if words else "."
    return Refused(f"{response.url.split('?')[0]} answered {response.status_code} ({response.reason}){message}")


def _reason(error: Exception) -> str:
    """Return a short reason for a failed request, without the internals of requests."""
    text = str(error)
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    for pattern in (r"(Connection refused)", r"(Name or service not known|[Nn]ame resolution|getaddrinfo failed)"):
        if match := re.search(pattern, text):
            return match[1].lower()
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate cannot be verified"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refused the connection"
    return "the connection broke off"


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    compressed = response.headers.get("Content-Encoding", "identity") != "identity"
    return int(length) if length.isdigit() and not compressed else None


def _range(response: requests.Response) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not match:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
