"""The control plane over HTTP: the watch stream, reports, secrets, snapshots."""

import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec

from agent import wire
from unkey import VERSION, clock

SILENCE_SECONDS = 30.0
_MAX_LINE = 4 * 1024 * 1024


class Unreachable(Exception):
    """The control plane did not answer, or not as it should; trying again may help."""


class Refused(Exception):
    """The control plane will not do this, however often it is asked."""


class ControlPlane:
    """The control plane as one agent sees it.

    Args:
        web_url: base URL of web.
        feed_url: base URL of feed.
        token: AGENT_TOKEN.
        agent: the agent's own name.
        region: the region that it runs.

    Every method raises `Unreachable` and `Refused`.
    """

    def __init__(self, *, web_url: str, feed_url: str, token: str, agent: str, region: str) -> None:
        self._web_url = web_url
        self._feed_url = feed_url
        self.agent = agent
        self.region = region
        # By these the control plane tells a report that was overtaken by a later one.
        self._run = secrets.token_hex(8)
        self._reports = 0
        self.heard = 0.0  # when it answered last, in Unix seconds
        # trust_env=False: the control plane is reached directly, never through a proxy of this process.
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(15.0, connect=3.0),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def watch(self, version: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the stream after a version; the lines end when the connection does.

        A stream that is silent for 30 seconds, three heartbeats, counts as lost.
        """
        try:
            async with self._client.stream(
                "GET",
                f"{self._feed_url}/internal/watch",
                params={"region": self.region, "version": version, "agent": self.agent},
                timeout=httpx.Timeout(SILENCE_SECONDS, connect=3.0),
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise Unreachable(f"feed answered {response.status_code}: {response.text[:500]}")
                yield _lines(response)
        except httpx.HTTPError as error:
            raise Unreachable(f"feed: {error or type(error).__name__}") from error

    async def heartbeat(self, url: str, applied: dict[str, int]) -> None:
        """Say that this agent lives, where its logs are read, and what it has applied."""
        await self._post("agents/heartbeat", url=url, applied=applied, software=VERSION)

    async def report(self, deployment_id: str, instances: Sequence[wire.InstanceState], applied: int) -> int:
        """Report all instances of a deployment; return the version from which on edges know of this.

        Args:
            applied: version of the topology that they follow; 0: none is known.
        """
        self._reports += 1
        content = await self._post(
            "instances/report",
            deploymentId=deployment_id,
            instances=instances,
            run=self._run,
            number=self._reports,
            applied=applied,
        )
        return _answer(content, _Version).version

    async def edges_know(self, version: int) -> bool:
        """Say whether every live edge knows of the instances as of a version."""
        return _answer(await self._post("instances/applied", version=version), _Applied).applied

    async def problem(self, stream: str, version: int, row: str, message: str) -> None:
        """Report a row that could not be applied."""
        await self._post("problems", stream=stream, version=version, row=row, message=message[:4000])

    async def secrets(self, deployment_id: str) -> dict[str, str]:
        """Return a deployment's decrypted variables."""
        return _answer(await self._post("secrets", deploymentId=deployment_id), _Variables).variables

    async def snapshot(self, digest: str, path: Path) -> None:
        """Fetch the archive of a digest to a path; it appears there only if its octets have that digest."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        digested = hashlib.sha256()
        try:
            async with self._client.stream("GET", f"{self._web_url}/internal/snapshots/{digest}") as response:
                await response.aread() if response.status_code != 200 else None
                _check(response)
                with draft.open("wb") as file:
                    async for octets in response.aiter_bytes(256 * 1024):
                        digested.update(octets)
                        file.write(octets)
            if digested.hexdigest() != digest:
                raise Refused("the snapshot's octets do not have its digest: pack and deploy it again")
            os.replace(draft, path)
        except httpx.HTTPError as error:
            raise Unreachable(f"web: {error or type(error).__name__}") from error
        finally:
            draft.unlink(missing_ok=True)

    async def _post(self, path: str, **body: object) -> bytes:
        try:
            response = await self._client.post(
                f"{self._web_url}/internal/{path}",
                content=msgspec.json.encode({"agent": self.agent, "region": self.region, **body}),
                headers={"Content-Type": "application/json"},
            )
        except httpx.HTTPError as error:
            raise Unreachable(f"web: {error or type(error).__name__}") from error
        _check(response)
        self.heard = clock.now_ms() / 1000
        return response.content


class _Version(msgspec.Struct):
    version: int


class _Applied(msgspec.Struct):
    applied: bool


class _Variables(msgspec.Struct):
    variables: dict[str, str]


_Body = TypeVar("_Body", bound=msgspec.Struct)


def _answer(content: bytes, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise Unreachable(f"web answered something else than was asked for: {error}") from error


def _check(response: httpx.Response) -> None:
    if response.status_code in (200, 204):
        return
    message = f"web answered {response.status_code} to {response.request.url.path}: {response.text[:500]}"
    # A wrong token and a web process that is being replaced are mended in time; the rest is not.
    if response.status_code in (400, 404, 413, 422):
        raise Refused(message)
    raise Unreachable(message)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    waiting = bytearray()
    async for octets in response.aiter_raw():
        waiting += octets
        *lines, rest = waiting.split(b"\n")
        waiting = rest
        for line in lines:
            yield bytes(line)
        if len(waiting) > _MAX_LINE:
            raise Unreachable("feed sent a line without an end")
