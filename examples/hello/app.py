"""A small web app: greets, says its version, streams, and describes itself in OpenAPI."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

HERE = Path(__file__).parent
VERSION = (HERE / "VERSION").read_text().strip()
GREETING = os.environ.get("GREETING", "Hello")
OPENAPI = (HERE / "openapi.yaml").read_bytes()


class Hello(BaseHTTPRequestHandler):
    """Routes: `/`, `/greet?name=`, `/whoami`, `/echo` (POST), `/openapi.yaml`, `/healthz`."""

    protocol_version = "HTTP/1.1"
    server_version = "hello"
    timeout = 300
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/":
            self.answer({"message": f"{GREETING} from version {VERSION}", "version": VERSION})
        elif url.path == "/greet":
            name = parse_qs(url.query).get("name", ["world"])[0]
            self.answer({"message": f"{GREETING}, {name}!", "version": VERSION})
        elif url.path == "/whoami":
            principal = self.headers.get("X-Unkey-Principal")
            self.answer({"principal": json.loads(principal) if principal else None, "version": VERSION})
        elif url.path == "/healthz":
            self.answer({"ok": True})
        elif url.path == "/openapi.yaml":
            self.send(200, OPENAPI, "application/yaml")
        else:
            self.answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/echo":
            self.send(200, body, self.headers.get("Content-Type", "application/octet-stream"))
        else:
            self.answer({"error": "not found"}, 404)

    def answer(self, value: object, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), "application/json")

    def send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


def main() -> None:
    port = int(os.environ["PORT"])
    server = Server(("127.0.0.1", port), Hello)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"hello version {VERSION} listens on port {port}", flush=True)
    server.serve_forever(poll_interval=0.05)
    print("bye", flush=True)


main()
