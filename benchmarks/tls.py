"""TLS: one edge process with a keyauth policy, against nginx as a plain reverse proxy, both with TLS.

    python -m benchmarks.tls [--seconds 2] [--rounds 5] [--handshakes 1000]

Both run on core 0, one worker each, with a certificate of ECDSA P-256, in front of the same upstream (nginx,
1 KiB from memory); load and upstream have core 1. Requests on kept connections are compared by their rate.
Handshakes are compared by the processor time that one costs its server: a client has more work with one than
a server, so that a core of clients cannot fill a core of nginx. A connection is made, perhaps with the session
of an earlier one, and closed, without a request.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path

import psutil

from benchmarks.load import ROOT, Result, pinned, run
from benchmarks.proxy import _UPSTREAM, HOST, HTTPS, NGINX, UPSTREAM, nginx, seed, start_edge
from benchmarks.sides import Side, compare

HANDSHAKES_BAR = 0.7
REQUESTS_BAR = 0.5
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_PROXY = """
  upstream app {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/chain.pem; ssl_certificate_key {folder}/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    }}
  }}
"""


def client(version: str) -> ssl.SSLContext:
    """Return a client's context for one version of TLS; it asks for no trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


def connect(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """Make one connection."""
    plain = socket.create_connection(("127.0.0.1", port), 10)
    return context.wrap_socket(plain, server_hostname=HOST, session=session)


def shake(port: int, version: str, resumed: bool, count: int) -> int:
    """Make connections, one after another; return how many did not resume though they should, or did."""
    context = client(version)
    session = None
    if resumed:
        with connect(context, port) as first:  # tickets of TLS 1.3 come with the first answer
            first.sendall(b"GET / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % HOST.encode())
            while first.recv(65536):
                pass
            session = first.session
    failures = 0
    for _ in range(count):
        with connect(context, port, session) as made:
            failures += made.session_reused is not resumed
    return failures


class Shaken:
    """A server, and what handshakes cost it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.costs: list[float] = []  # microseconds of processor time, without what it uses at rest
        self.failures = 0
        self._process = psutil.Process(process.pid)
        self._port = port

    def run(self, version: str, resumed: bool, count: int) -> float:
        """Have connections made by a process on core 1; return the cost of one."""
        rest, began = self._used(), time.perf_counter()
        time.sleep(0.5)
        rest = (self._used() - rest) / (time.perf_counter() - began)
        job = json.dumps([self._port, version, resumed, count])
        command = pinned(1, [sys.executable, "-m", "benchmarks.tls", "--shake", job])
        used, began = self._used(), time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        used = self._used() - used - rest * (time.perf_counter() - began)
        self.failures += int(done.stdout)
        self.costs.append(used / count * 1e6)
        return self.costs[-1]

    def _used(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def handshakes(edge: Shaken, other: Shaken, version: str, resumed: bool, *, rounds: int, count: int) -> bool:
    """Load both in turn, print what was seen; say whether the bar is met."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(edge.run(version, resumed, count))
        theirs.append(other.run(version, resumed, count))
    reached = statistics.median(two / one for one, two in zip(ours, theirs, strict=True))
    good = reached >= HANDSHAKES_BAR and not edge.failures
    costs = (statistics.median(ours), statistics.median(theirs))
    print(
        f"tls: handshakes, TLS {version}, {'resumed' if resumed else 'full'}: "
        f"{costs[0]:,.0f} us of processor each, nginx {costs[1]:,.0f}: "
        f"{1e6 / costs[0]:,.0f} a second of a core, nginx {1e6 / costs[1]:,.0f}; failures {edge.failures}; "
        f"ratio {reached:.2f} (bar {HANDSHAKES_BAR}) {'ok' if good else 'MISSED'}",
        flush=True,
    )
    return good


def wait_for(port: int, key: str) -> None:
    """Ask until the answer is the app's.

    Raises:
        TimeoutError: it was not within 20 seconds.
    """
    asked = urllib.request.Request(
        f"https://127.0.0.1:{port}/", headers={"Host": HOST, "Authorization": f"Bearer {key}"}
    )
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(asked, timeout=2, context=client("1.3")) as answer:
                if len(answer.read()) == 1024:
                    return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(asked.full_url)


def certify(folder: Path) -> None:
    """Make the certificates of the edge in its database, and one of the same kind in files."""
    from django.db import transaction

    from apps.certs import services as certs
    from apps.cluster import versions

    with transaction.atomic():
        versions.hold(["certificates"])
        certs.ensure_default_certificates()
    issued = certs.ensure_local_ca().issue(HOST)
    (folder / "chain.pem").write_text(issued.chain)
    (folder / "key.pem").write_text(issued.private_key)


def main() -> int:
    """Run the benchmark; 0 if the bars are met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--handshakes", type=int, default=1000, help="in each round")
    parser.add_argument("--profile", default="", help="write a cProfile of the edge to this file")
    parser.add_argument("--shake", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shake:
        print(shake(*json.loads(options.shake)))
        return 0
    if shutil.which("nginx") is None:
        print("tls: nginx is not installed (apt install nginx-light wrk); there is nothing to compare with")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="unkey-bench-"))
    os.environ["UNKEY_VAR"] = str(folder / "var")
    children: list[subprocess.Popen[bytes]] = []
    good: list[bool] = []
    try:
        key = seed(UPSTREAM)
        certify(folder)
        children.append(
            nginx(folder, "upstream", _UPSTREAM.format(port=UPSTREAM, content="x" * 1024), core=1)
        )
        proxy = _PROXY.format(port=NGINX, upstream=UPSTREAM, folder=folder)
        children.append(nginx(folder, "proxy", proxy, core=0))
        children.append(start_edge(folder, options.profile))
        for port in (NGINX, HTTPS):
            wait_for(port, key)
        ours, theirs = Shaken(children[2], HTTPS), Shaken(children[1], NGINX)
        for version in VERSIONS:
            for resumed in (False, True):
                good.append(
                    handshakes(
                        ours, theirs, version, resumed, rounds=options.rounds, count=options.handshakes
                    )
                )

        def load(port: int, seconds: float) -> Result:
            return run(
                f"https://127.0.0.1:{port}/",
                core=1,
                connections=options.connections,
                seconds=seconds,
                headers={"Host": HOST, "Authorization": f"Bearer {key}"},
            )

        edge = Side("edge", children[2], partial(load, HTTPS))
        other = Side("nginx", children[1], partial(load, NGINX))
        reached = compare(edge, other, options.rounds, options.seconds)
        good.append(reached >= REQUESTS_BAR and not edge.failures)
        print(f"tls: requests: ratio {reached:.2f} (bar {REQUESTS_BAR}) {'ok' if good[-1] else 'MISSED'}")
    finally:
        for child in reversed(children):
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good and all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
