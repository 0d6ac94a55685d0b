"""Whom the agent's own server lets in."""

import asyncio
import hashlib

import pytest

from agent.server import Server


class NoInstances:
    """A reconciler that keeps nothing."""

    async def logs(self, deployment_id, tail):
        return []


async def status(authorization: str) -> int:
    server = Server(NoInstances(), "current", lambda: True, ("earlier",))  # type: ignore[arg-type]
    await server.listen("127.0.0.1", 0)
    try:
        port = server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /logs?deployment=d_1 HTTP/1.1\r\nAuthorization: {authorization}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return int(answer.split()[1])
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("current", 200),
        ("earlier", 200),
        # What the control plane keeps of a token that is this agent's own.
        (hashlib.sha256(b"current").hexdigest(), 200),
        (hashlib.sha256(b"earlier").hexdigest(), 401),
        ("", 401),
        ("other", 401),
    ],
)
def test_logs_are_for_the_control_plane(token, expected):
    assert asyncio.run(status(f"Bearer {token}")) == expected
