"""Web server on loopback that serves bytes by path, or the part of them that a Range header requests."""

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Faults:
    """Faults of a server: none at first; tests may set any of them at any time."""

    status: int | None = None
    """HTTP status of all answers, which have no content. If None, the server answers without this fault."""
    bytes_sent: int | None = None
    """Number of bytes of a body after which the connection is dropped."""
    tells_length: bool = True
    """If false, Content-Length is left out, so that only the end of the connection ends a body."""


class FileHandler(BaseHTTPRequestHandler):
    """Handler that serves `files`, with the digests of their content as ETags."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    faults = Faults()

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        content = self.files.get(self.path_without_query)
        if content is None or self.faults.status is not None:
            self.answer(self.faults.status or 404, b"")
        else:
            self.answer_content(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"})

    @property
    def path_without_query(self) -> str:
        return unquote(urlsplit(self.path).path)

    def answer_content(self, content: bytes, headers: dict[str, str]) -> None:
        """Answer with all of the content, or with the requested range of bytes, which may be open-ended."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(200, content, headers)
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if start > end:
            return self.answer(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
        return self.answer(
            206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}
        )

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.faults.tells_length or self.command == "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            sent = content[: self.faults.bytes_sent]
            self.wfile.write(sent)
            self.close_connection |= sent != content or not self.faults.tells_length

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """Server that, when closed, also closes the connections that clients would reuse."""

    def server_activate(self) -> None:
        self.accepted: list[socket.socket] = []
        super().server_activate()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, client = super().get_request()
        self.accepted.append(connection)
        return connection, client

    def server_close(self) -> None:
        super().server_close()
        for connection in self.accepted:
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a server, and yield its address."""
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextmanager
def file_server(files: dict[str, bytes], faults: Faults | None = None) -> Iterator[str]:
    """Serve files by their paths, which begin with a slash, and yield the server's address.

    Tests may change the files and the faults at any time.
    """
    with serving(type("Handler", (FileHandler,), {"files": files, "faults": faults or Faults()})) as address:
        yield address
