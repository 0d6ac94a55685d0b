"""Fetches and keeps the key sets of token issuers (RFC 7517; OpenID Connect Discovery 1.0).

Keys that are past their time are still used while newer ones are fetched, for a day at most; one fetch
of a set is under way at a time, and a token by an unknown key causes at most one every half minute.

The addresses are our customers' choice, so they are not let into the machine's own network: only public
addresses over HTTPS, no redirects, unless `EDGE_JWKS_PRIVATE` allows others.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog

from edge.sentinel.iprules import unmapped
from edge.sentinel.jwtauth import Keys, KeysUnavailable, read_key_set
from unkey import clock

log = structlog.get_logger("edge")

SECONDS = 5.0
MOST_OCTETS = 512 * 1024
STALE_MS = 86_400_000
LOOK_AGAIN_MS = 30_000
MOST_SETS = 1_000


class Refused(ValueError):
    """An address that is not fetched from."""


class KeySets:
    """The key sets of all policies of this process.

    Args:
        private: fetch from private addresses and without TLS, too.
    """

    def __init__(self, *, private: bool = False) -> None:
        self._private = private
        self._sets: dict[tuple[str, bool], RemoteKeys] = {}

    def open(self, url: str, issuer: bool, cache_ms: int) -> "RemoteKeys":
        """Return the keys at an address, or of an OpenID issuer; shared by the policies that name it."""
        found = self._sets.get((url, issuer))
        if found is None:
            if len(self._sets) >= MOST_SETS:
                del self._sets[next(iter(self._sets))]
            found = self._sets[url, issuer] = RemoteKeys(
                url, self._fetch_issuer if issuer else self._fetch_set
            )
        found.cache_ms = cache_ms if found.cache_ms is None else min(found.cache_ms, cache_ms)
        return found

    async def _fetch_set(self, url: str) -> Keys:
        return read_key_set(await self._get(url))

    async def _fetch_issuer(self, issuer: str) -> Keys:
        about = await self._get(issuer.rstrip("/") + "/.well-known/openid-configuration")
        if not isinstance(about, dict) or about.get("issuer") != issuer:
            raise ValueError(f"the discovery document is not that of {issuer}")
        url = about.get("jwks_uri")
        if not isinstance(url, str):
            raise ValueError("the discovery document has no jwks_uri")
        return await self._fetch_set(url)

    async def _get(self, url: str) -> Any:
        async with asyncio.timeout(SECONDS):
            parts = urlsplit(url)
            if parts.scheme != "https" and not (self._private and parts.scheme == "http"):
                raise Refused("keys are fetched over https only")
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
            address = await self._resolve(host, port)
            target = httpx.URL(url).copy_with(host=address)
            headers = {"Host": parts.netloc.rpartition("@")[2], "Accept": "application/json"}
            async with (
                httpx.AsyncClient(
                    verify=ssl.create_default_context(), trust_env=False, timeout=SECONDS
                ) as client,
                client.stream("GET", target, headers=headers, extensions={"sni_hostname": host}) as response,
            ):
                if response.status_code != 200:
                    raise ValueError(f"the answer is {response.status_code}")
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MOST_OCTETS:
                        raise ValueError(f"the answer has more than {MOST_OCTETS} octets")
        return json.loads(body)

    async def _resolve(self, host: str, port: int) -> str:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        for address in addresses:
            if not self._private and not unmapped(ip_address(address)).is_global:
                raise Refused("the address is not a public one")
        return addresses[0]


class RemoteKeys:
    """One key set that is fetched (`edge.sentinel.jwtauth.KeySource`)."""

    def __init__(self, url: str, fetch: Callable[[str], Awaitable[Keys]]) -> None:
        self.cache_ms: int | None = None
        self._url = url
        self._fetch = fetch
        self._keys: Keys | None = None
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    def current(self) -> Keys | Awaitable[Keys]:
        """Return the keys; a fetch is waited for only where there are none yet.

        Raises:
            KeysUnavailable: there are none, and they have just been asked for in vain.
        """
        age = clock.now_ms() - self._fetched_at
        if self._keys is not None and age < (self.cache_ms or 0):
            return self._keys
        if self._keys is not None and age < (self.cache_ms or 0) + STALE_MS:
            if self._may_try(LOOK_AGAIN_MS):
                self._start()
            return self._keys
        self._keys = None
        if self._fetching is None and not self._may_try(1_000):
            raise KeysUnavailable(self._url)
        return self._wait()

    def newer(self, than: Keys) -> Keys | Awaitable[Keys]:
        """Return the keys after another fetch, if the last one is long enough ago."""
        if self._keys is not None and self._keys is not than:
            return self._keys
        if self._fetching is None and not self._may_try(LOOK_AGAIN_MS):
            return than
        return self._wait()

    def _may_try(self, interval_ms: int) -> bool:
        return self._tried_at is None or clock.now_ms() - self._tried_at >= interval_ms

    def _start(self) -> "asyncio.Task[None]":
        if self._fetching is None:
            self._tried_at = clock.now_ms()
            self._fetching = asyncio.get_running_loop().create_task(self._refresh())
            self._fetching.add_done_callback(lambda _: setattr(self, "_fetching", None))
        return self._fetching

    async def _wait(self) -> Keys:
        await asyncio.shield(self._start())
        if self._keys is None:
            raise KeysUnavailable(self._url)
        return self._keys

    async def _refresh(self) -> None:
        try:
            keys = await self._fetch(self._url)
        except (
            OSError,
            ValueError,
            TimeoutError,
            httpx.HTTPError,
            httpx.InvalidURL,
            RecursionError,
        ) as error:
            log.warning("edge.keys_not_fetched", url=self._url, error=str(error) or type(error).__name__)
            return
        self._keys, self._fetched_at = keys, clock.now_ms()
