"""Local file server with faults on request: broken downloads, refusals, ignored ranges and changed files, with a log."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Asked:
    method: str
    path: str
    range: str | None
    if_range: str | None
    status: int
    sent: int


@dataclass
class FileServer:
    """Files by path (with query); `cuts` and `statuses` are used up, one a request of that path."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    messages: dict[str, dict[str, str]] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    lengths: bool = True
    log: list[Asked] = field(default_factory=list)
    url: str = ""

    def asked(self, method: str = "GET", path: str = "") -> list[Asked]:
        return [one for one in self.log if one.method == method and one.path.startswith(path)]


@contextlib.contextmanager
def serve_files() -> Iterator[FileServer]:
    files_served = FileServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path, asked = self.path, self.headers.get("Range")
            status, content, extra = 200, files_served.files.get(path), {}
            if body and files_served.statuses.get(path):
                status = files_served.statuses[path].pop(0)
            elif content is None:
                status = 404
            if status != 200:
                content = json.dumps(files_served.messages.get(path, {})).encode()
                extra["Content-Type"] = "application/json"
            elif body and files_served.etags:
                extra["ETag"] = f'"{hashlib.md5(content).hexdigest()}"'
            total, start = len(content), 0
            if status == 200 and asked and files_served.ranges and body:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                condition = self.headers.get("If-Range")
                if condition and condition != extra.get("ETag"):
                    start = 0
                elif start >= total:
                    status, content, extra = 416, b"", {"Content-Range": f"bytes */{total}"}
                else:
                    status, content = 206, content[start:]
                    extra["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            cut = (
                files_served.cuts[path].pop(0)
                if body and status in (200, 206) and files_served.cuts.get(path)
                else len(content)
            )
            files_served.log.append(
                Asked(self.command, path, asked, self.headers.get("If-Range"), status, cut if body else 0)
            )
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            if files_served.lengths or status != 200:
                self.send_header("Content-Length", str(len(content)))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            if body:
                with contextlib.suppress(OSError):  # a client that has heard enough
                    self.wfile.write(content[:cut])
            if cut < len(content) or not files_served.lengths:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that goes away is what some tests are about
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    files_served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield files_served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def path_of(url: str) -> str:
    """The path and query under which a mirror holds a publisher's URL."""
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")
