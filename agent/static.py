"""Serves a folder of files over HTTP: what a static site is started with.

    PORT=8000 python -m agent.static public

Regular files inside the folder only: a path, or a symbolic link, that leads out of it is not found, and
neither are hidden files (`.well-known` excepted). Needs nothing but the standard library.
"""

import email.utils
import os
import sys
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".htm": "text/html; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".webmanifest": "application/manifest+json",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".pdf": "application/pdf",
    ".wasm": "application/wasm",
    ".zip": "application/zip",
    ".gz": "application/gzip",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".svg": "image/svg+xml",
    ".ico": "image/x-icon",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".ttf": "font/ttf",
    ".otf": "font/otf",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}
OTHER = "application/octet-stream"
_INDEX = "index.html"
_NOT_FOUND_PAGE = "404.html"


def resolve(root: Path, target: str) -> Path | None:
    """Return the file that a request path names, or None when there is none to be served.

    Args:
        root: the folder, itself resolved.
        target: path of the request, as sent.
    """
    parts = unquote(target).split("/")
    if any(part.startswith(".") and part != ".well-known" for part in parts) or any(
        "\0" in part for part in parts
    ):
        return None
    try:
        path = root.joinpath(*(part for part in parts if part)).resolve()
        if path.is_dir():
            path = (path / _INDEX).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (OSError, ValueError):
        return None


class Handler(SimpleHTTPRequestHandler):
    """Answers GET and HEAD from `server.root`."""

    protocol_version = "HTTP/1.1"
    server_version = "static"
    sys_version = ""
    timeout = 75
    server: "StaticServer"

    def send_head(self) -> BinaryIO | None:
        """Send status and headers, and return the open file whose bytes follow, if any do."""
        target = urlsplit(self.path).path
        path = resolve(self.server.root, target)
        status = HTTPStatus.OK
        if path is None:
            status = HTTPStatus.NOT_FOUND
            path = resolve(self.server.root, f"/{_NOT_FOUND_PAGE}")
        elif path.name == _INDEX and not target.endswith(("/", _INDEX)):
            self._redirect(f"/{target.strip('/')}/")
            return None
        try:
            file = path.open("rb") if path else None
        except OSError:
            status, file = HTTPStatus.NOT_FOUND, None
        if path is None or file is None:
            self.send_error(HTTPStatus.NOT_FOUND, "Not Found")
            return None
        found = os.fstat(file.fileno())
        tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        if status is HTTPStatus.OK and tag in self.headers.get("If-None-Match", ""):
            file.close()
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", tag)
            self.end_headers()
            return None
        self.send_response(status)
        self.send_header("Content-Type", TYPES.get(path.suffix.lower(), OTHER))
        self.send_header("Content-Length", str(found.st_size))
        self.send_header("Last-Modified", email.utils.formatdate(found.st_mtime, usegmt=True))
        self.send_header("Cache-Control", "no-cache")
        self.send_header("ETag", tag)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        return file

    def _redirect(self, location: str) -> None:
        self.send_response(HTTPStatus.MOVED_PERMANENTLY)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        print(f"{self.address_string()} {format % args}", flush=True)  # noqa: T201 - goes to the instance's log


class StaticServer(ThreadingHTTPServer):
    """A threading server of one folder."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], root: Path) -> None:
        self.root = root.resolve(strict=True)
        super().__init__(address, Handler)


def main(arguments: list[str]) -> int:
    """Serve the folder that the arguments name, on PORT, until stopped.

    Returns:
        Exit status: 2 when a folder or port is missing.
    """
    if len(arguments) != 1 or not Path(arguments[0]).is_dir() or not os.environ.get("PORT", "").isdigit():
        print("usage: PORT=number python -m agent.static FOLDER", file=sys.stderr)  # noqa: T201
        return 2
    with StaticServer(("127.0.0.1", int(os.environ["PORT"])), Path(arguments[0])) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
