"""A real server and real upstreams inside the test: raw sockets on both ends."""

import asyncio
import contextlib
import datetime
import re
import socket
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import h11
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.http.limits import Limits
from edge.http.proxy import forward
from edge.http.request import Request
from edge.http.server import Server
from edge.http.upstream import Pool
from edge.store.records import Certificate
from unkey.ports import choose

PATIENCE = 60.0
FRAMED = re.compile(rb"(?i)content-length|chunked|1.1 204|1.1 304")


class Loop:
    """A uvloop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def call(self, work: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return work()

        return self.run(run())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


@dataclass
class Seen:
    """A request as it reached the upstream, read by h11, which is strict."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


def ok(seen: Seen) -> bytes:
    body = f"{seen.method} {seen.target} {len(seen.body)}".encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@dataclass
class Origin:
    """An upstream whose answers are raw bytes; `script` takes a whole connection over instead."""

    answer: Callable[[Seen], bytes] = ok
    script: Callable[[socket.socket], None] | None = None
    seen: list[Seen] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.settimeout(PATIENCE)
            self.connections += 1
            self._open.append(client)
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.script is not None:
                self.script(client)
                return
            connection = h11.Connection(h11.SERVER)
            while (seen := self._read(client, connection)) is not None:
                self.seen.append(seen)
                answer = self.answer(seen)
                client.sendall(answer)
                if b"connection: close" in answer.lower() or not FRAMED.search(answer):
                    return
                connection = h11.Connection(h11.SERVER)

    def _read(self, client: socket.socket, connection: h11.Connection) -> Seen | None:
        request, body = None, b""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                self.faults.append(str(error))
                return None
            if event is h11.NEED_DATA:
                connection.receive_data(client.recv(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                if connection.trailing_data[0]:
                    self.faults.append("bytes after a request")
                headers = [(name.decode(), value.decode("latin-1")) for name, value in request.headers]
                return Seen(request.method.decode(), request.target.decode(), headers, body)
            else:
                return None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self._open:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)


class Client:
    """A raw client connection."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self._held = b""

    @classmethod
    def over(cls, connection: socket.socket) -> "Client":
        """Speak over a connection that is already open."""
        client = cls.__new__(cls)
        client.socket = connection
        client._held = b""
        return client

    def send(self, data: bytes) -> "Client":
        self.socket.sendall(data)
        return self

    def until(self, mark: bytes) -> bytes:
        while mark not in self._held:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(self._held)
            self._held += data
        index = self._held.index(mark) + len(mark)
        got, self._held = self._held[:index], self._held[index:]
        return got

    def take(self, count: int) -> bytes:
        while len(self._held) < count:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(self._held)
            self._held += data
        got, self._held = self._held[:count], self._held[count:]
        return got

    def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read one response: status, headers with lower-case names, body."""
        text = self.until(b"\r\n\r\n").decode("latin-1")
        lines = text.split("\r\n")[:-2]
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        status = int(lines[0].split()[1])
        body = b""
        if head or status in (204, 304) or status < 200:
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n"), 16):
                body += self.take(size)
                assert self.take(2) == b"\r\n"
            headers["trailers"] = ""
            while (line := self.until(b"\r\n")) != b"\r\n":
                headers["trailers"] += line.decode()
        elif "content-length" in headers:
            body = self.take(int(headers["content-length"]))
        else:
            body = self.rest()
        return status, headers, body

    def rest(self) -> bytes:
        """Read until the server closes."""
        got, self._held = self._held, b""
        with contextlib.suppress(ConnectionResetError):
            while data := self.socket.recv(65536):
                got += data
        return got

    def close(self) -> None:
        self.socket.close()


class Rig:
    """Servers on one loop; everything is closed at the end."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.pool = Pool(Limits())
        self.loop.call(self.pool.start)
        self.servers: list[Server] = []
        self.ports: dict[Server, int] = {}
        self.origins: list[Origin] = []
        self.clients: list[Any] = []

    def origin(self, answer: Callable[[Seen], bytes] = ok, script: Any = None, port: int = 0) -> Origin:
        origin = Origin(answer, script, port=port)
        self.origins.append(origin)
        return origin

    def serve(
        self, handle: Callable[[Request], None], limits: Limits | None = None, **options: Any
    ) -> Server:
        server = Server("test", handle, limits or Limits(), **options)
        self.loop.run(server.start("127.0.0.1", 0))
        self.servers.append(server)
        self.ports[server] = server.port
        return server

    def proxy(self, *addresses: str, limits: Limits | None = None, **options: Any) -> Server:
        """Start a server that forwards everything."""
        self.pool.limits = limits or Limits()
        return self.serve(lambda request: forward(request, self.pool, addresses), limits, **options)

    def client(self, server: Server, **options: Any) -> Client:
        client = Client(self.ports[server], **options)
        self.clients.append(client)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()

        async def stop() -> None:
            for server in self.servers:
                server.limits = Limits(drain_seconds=0)
                await server.stop()
            self.pool.stop()
            await asyncio.sleep(0.01)

        self.loop.run(stop())
        for origin in self.origins:
            origin.close()
        self.loop.close()


def certificate(name: str, version: int, days: int = 36500) -> Certificate:
    """Return a certificate that signs itself, with the version as its serial number, good for so many days of 2026."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    issued = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(version)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(
        name, issued.public_bytes(serialization.Encoding.PEM).decode(), private.decode(), version
    )


def free_port() -> int:
    """Return a port that nobody listens on, or will by accident."""
    return choose("127.0.0.1", ["port"])["port"]
