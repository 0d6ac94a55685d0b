"""Key sets over the network: fetched once, kept, renewed, and never from where they should not be."""

import asyncio
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from edge.frontline import jwks
from edge.frontline.jwks import KeySets
from edge.sentinel.jwtauth import KeysUnavailable

HOUR = 3_600_000


def document(*kids):
    key = jwt.algorithms.OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True)
    return {"keys": [{**key, "kid": kid} for kid in kids]}


class Issuer:
    """A real HTTP server on the loopback; `answers` by path: status, body, further headers."""

    def __init__(self):
        self.answers = {}
        self.asked = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://localhost:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    def publish(self, body, path="/keys", status=200, headers=""):
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[path] = (
            f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\nConnection: close\r\n{headers}\r\n".encode()
            + text
        )

    async def _serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        self.asked.append(path)
        writer.write(self.answers[path])
        await writer.drain()
        writer.close()


@pytest.fixture
def now(monkeypatch):
    moment = [1_800_000_000_000]
    monkeypatch.setattr("unkey.clock.now_ms", lambda: moment[0])
    return moment


async def kids(keys):
    return [key.kid for key in (keys if isinstance(keys, tuple) else await keys)]


def run(scenario):
    async def scene():
        async with Issuer() as issuer:
            await scenario(issuer)

    asyncio.run(scene())


def test_keys_are_fetched_once_and_kept_for_their_time(now):
    async def scenario(issuer):
        issuer.publish(document("a"))
        source = KeySets(private=True).open(issuer.url + "/keys", False, HOUR)
        assert await asyncio.gather(*(kids(source.current()) for _ in range(5))) == [["a"]] * 5
        now[0] += HOUR - 1
        assert await kids(source.current()) == ["a"]
        assert issuer.asked == ["/keys"]

    run(scenario)


def test_keys_past_their_time_are_used_while_newer_ones_are_fetched(now):
    async def scenario(issuer):
        issuer.publish(document("a"))
        source = KeySets(private=True).open(issuer.url + "/keys", False, HOUR)
        await kids(source.current())
        issuer.publish(document("b"))
        now[0] += HOUR
        assert isinstance(source.current(), tuple)
        while await kids(source.current()) != ["b"]:
            await asyncio.sleep(0.01)
        assert issuer.asked == ["/keys", "/keys"]

    run(scenario)


def test_an_issuer_that_is_gone_is_outlived_for_a_day_only(now):
    async def scenario(issuer):
        issuer.publish(document("a"))
        source = KeySets(private=True).open(issuer.url + "/keys", False, HOUR)
        await kids(source.current())
        issuer.publish({}, status=500)
        now[0] += HOUR
        assert await kids(source.current()) == ["a"]
        while len(issuer.asked) < 2 or source._fetching is not None:
            await asyncio.sleep(0.01)
        assert await kids(source.current()) == ["a"]
        assert len(issuer.asked) == 2  # not asked for every request
        now[0] += jwks.STALE_MS
        with pytest.raises(KeysUnavailable):
            await kids(source.current())

    run(scenario)


def test_an_unknown_key_causes_one_look_every_half_minute(now):
    async def scenario(issuer):
        issuer.publish(document("a"))
        source = KeySets(private=True).open(issuer.url + "/keys", False, HOUR)
        fetching = source.current()
        assert not isinstance(fetching, tuple)
        first = await fetching
        assert source.newer(first) is first
        now[0] += jwks.LOOK_AGAIN_MS
        issuer.publish(document("a", "b"))
        assert await asyncio.gather(*(kids(source.newer(first)) for _ in range(5))) == [["a", "b"]] * 5
        assert await kids(source.newer(first)) == ["a", "b"]
        assert len(issuer.asked) == 2

    run(scenario)


def test_an_openid_issuer_is_discovered(now):
    async def scenario(issuer):
        about = {"issuer": issuer.url, "jwks_uri": issuer.url + "/keys"}
        issuer.publish(about, "/.well-known/openid-configuration")
        issuer.publish(document("a"))
        sets = KeySets(private=True)
        assert await kids(sets.open(issuer.url, True, HOUR).current()) == ["a"]
        issuer.publish({**about, "issuer": "https://other.test"}, "/.well-known/openid-configuration")
        with pytest.raises(KeysUnavailable):
            await kids(KeySets(private=True).open(issuer.url, True, HOUR).current())

    run(scenario)


@pytest.mark.parametrize(
    ("body", "status", "headers"),
    [
        (b"not json", 200, ""),
        ({"keys": 1}, 200, ""),
        (b"[" * 100_000, 200, ""),
        (b" " * (jwks.MOST_OCTETS + 1), 200, ""),
        ({"keys": []}, 404, ""),
        ({"keys": []}, 302, "Location: /elsewhere\r\n"),
    ],
)
def test_what_is_no_key_set_leaves_no_keys(now, body, status, headers):
    async def scenario(issuer):
        issuer.publish(body, status=status, headers=headers)
        source = KeySets(private=True).open(issuer.url + "/keys", False, HOUR)
        with pytest.raises(KeysUnavailable):
            await kids(source.current())
        with pytest.raises(KeysUnavailable):
            source.current()  # at once: it was asked a moment ago
        assert issuer.asked == ["/keys"]

    run(scenario)


def test_the_own_network_is_not_reached_unless_it_may_be(now):
    async def scenario(issuer):
        issuer.publish(document("a"))
        port = issuer.url.rpartition(":")[2]
        for url in (
            f"{issuer.url}/keys",
            f"https://localhost:{port}/keys",
            f"https://127.0.0.1:{port}/keys",
            f"https://[::ffff:127.0.0.1]:{port}/keys",
            "https://169.254.169.254/keys",
            "file:///etc/passwd",
            "https://",
            "no url at all",
        ):
            with pytest.raises(KeysUnavailable):
                await kids(KeySets().open(url, False, HOUR).current())
        assert issuer.asked == []

    run(scenario)
