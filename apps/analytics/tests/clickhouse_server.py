"""ClickHouse's HTTP interface over chDB, for tests: the engine is the real one, the server is not.

Run by path; prints its port. It keeps to what the interface promises of a POST: statement and rows in the body,
user and password in headers, errors with status and `Code: N`.
"""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

from chdb import session

engine = session.Session()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        user, key = self.headers.get("X-ClickHouse-User"), self.headers.get("X-ClickHouse-Key")
        if (user, key) != ("unkey", "pass/word"):
            return self.answer(403, b"Code: 516. DB::Exception: Authentication failed")
        assert parse_qs(urlsplit(self.path).query)["database"] == ["default"]
        try:
            self.answer(200, engine.query(body, "TabSeparated").bytes())
        except Exception as error:
            self.answer(500, str(error).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
sys.stdout.flush()
server.serve_forever()
