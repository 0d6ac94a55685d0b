"""Four real edge processes, killed at random: every credit is sold once, and none is lost."""

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from django.db import connection

from apps.keys.models import CreditLease, Key
from apps.keys.values import Credits
from edge.http.tests.rig import free_port
from unkey.tenancy import unscoped

ROOT = Path(__file__).resolve().parents[3]
EDGES = 4
ROLES = ("EDGE_API_PORT", "EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "EDGE_METRICS_PORT", "WEB_PORT")
PATIENCE = 60.0

# Processes that start again and again, for most of a minute; on a machine that does other things, for minutes.
pytestmark = [pytest.mark.services, pytest.mark.timeout(400)]


def database_url() -> str:
    """Return the address of the test's own database."""
    settings = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{settings['NAME']}"
    where = f"{settings['HOST']}:{settings['PORT'] or 3306}/{settings['NAME']}"
    return f"mysql://{settings['USER']}:{settings['PASSWORD']}@{where}"


class Process:
    """An edge process that may be killed and started again."""

    def __init__(self, folder: Path, number: int) -> None:
        self.ports = {role: str(free_port()) for role in ROLES}
        self._settings = {
            "PATH": os.environ["PATH"],
            "UNKEY_VAR": str(folder),
            "DATABASE_URL": database_url(),
            "EDGE_ID": f"edge-{number}",
            "LOG_LEVEL": "error",
            "TELEMETRY": "0",
            **self.ports,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port of the API."""
        return int(self.ports["EDGE_API_PORT"])

    def start(self) -> None:
        """Start it."""
        self.process = subprocess.Popen([sys.executable, "-m", "edge"], cwd=ROOT, env=self._settings)

    def until_ready(self) -> None:
        """Wait until it answers."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            probe = http.client.HTTPConnection("127.0.0.1", int(self.ports["EDGE_METRICS_PORT"]), timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(probe):
                probe.request("GET", "/health/ready")
                if probe.getresponse().status == 200:
                    return
            time.sleep(0.1)
        raise AssertionError("the edge is not ready")

    def end(self, how: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(PATIENCE)


class Buyer(threading.Thread):
    """Verifies random keys at random edges until it is told to stop."""

    def __init__(self, edges: list[Process], root_key: str, texts: list[str], seed: int) -> None:
        super().__init__()
        self.sold: Counter[int] = Counter()
        self.broken: Counter[int] = Counter()
        self.refused = 0
        self.stopping = threading.Event()
        self._edges, self._texts = edges, texts
        self._headers = {"Authorization": f"Bearer {root_key}"}
        self._chance = random.Random(seed)
        self._lines: dict[int, http.client.HTTPConnection] = {}

    def run(self) -> None:
        with contextlib.ExitStack() as open_lines:
            self._buy(open_lines)

    def _buy(self, open_lines: contextlib.ExitStack) -> None:
        while not self.stopping.is_set():
            number = self._chance.randrange(len(self._texts))
            edge = self._chance.choice(self._edges)
            if edge.port not in self._lines:
                line = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=30)
                self._lines[edge.port] = open_lines.enter_context(contextlib.closing(line))
            line = self._lines[edge.port]
            try:
                body = json.dumps({"key": self._texts[number]})
                line.request("POST", "/v2/keys.verifyKey", body, self._headers)
                answer = json.loads(line.getresponse().read())
            except (OSError, http.client.HTTPException):
                # It may have been spent, and only the answer be lost.
                self.broken[number] += 1
                line.close()
                time.sleep(0.05)
                continue
            code = answer["data"]["code"] if "data" in answer else ""
            self.sold[number] += code == "VALID"
            self.refused += code == "USAGE_EXCEEDED"


def test_kills_sell_no_credit_twice_and_lose_none(owner, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    totals = [chance.choice((1, 2, 3, 10, 40)) for _ in range(1000)]
    made = [owner.key(credits=Credits(total)) for total in totals]
    edges = [Process(tmp_path, number) for number in range(EDGES)]
    for edge in edges:
        edge.start()
    try:
        for edge in edges:
            edge.until_ready()
        buyers = [
            Buyer(edges, owner.root_key, [text for _, text in made], seed + number) for number in range(8)
        ]
        for buyer in buyers:
            buyer.start()
        for _ in range(6):
            time.sleep(3)
            victim = chance.choice(edges)
            victim.end(signal.SIGKILL)
            victim.start()
            victim.until_ready()
        for buyer in buyers:
            buyer.stopping.set()
        for buyer in buyers:
            buyer.join()
        for edge in edges:
            edge.end(signal.SIGTERM)
    finally:
        for edge in edges:
            if edge.process is not None and edge.process.poll() is None:
                edge.end(signal.SIGKILL)
    assert not CreditLease.objects.exists()
    sold, broken = (
        sum((buyer.sold for buyer in buyers), Counter()),
        sum((buyer.broken for buyer in buyers), Counter()),
    )
    with unscoped("the test looks at what is left"):
        left = dict(Key.objects.values_list("pk", "remaining"))
    print(
        f"{sum(sold.values())} sold, {sum(buyer.refused for buyer in buyers)} refused, {broken.total()} broken"
    )
    assert sum(sold.values()) > 500
    for number, (key, _) in enumerate(made):
        spent = totals[number] - (left[key.pk] or 0)
        assert sold[number] <= spent <= sold[number] + broken[number], (number, totals[number], seed)
