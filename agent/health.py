"""Asks an instance whether it is well, by its environment's health check or by the default one."""

import asyncio
from contextlib import suppress

from agent.wire import Healthcheck, Settings

DEFAULT_TIMEOUT_SECONDS = 5.0
_MAX_STATUS_LINE = 1024


async def is_ready(address: str, settings: Settings) -> str:
    """Ask once while an instance starts; return "" when it is ready, else why not.

    With a health check: its answer must be 200 to 399. Without one: any HTTP answer to `GET /` will do,
    or, where the program speaks HTTP/2 only, that its port accepts connections.
    """
    check = settings.healthcheck
    if check is not None:
        return await _answers(address, check.method, check.path, float(check.timeout_seconds), judged=True)
    if settings.upstream_protocol == "h2c":
        return await accepts(address)
    return await _answers(address, "GET", "/", DEFAULT_TIMEOUT_SECONDS, judged=False)


async def is_well(address: str, check: Healthcheck | None) -> str:
    """Ask once while an instance runs; return "" when it is well, else what is wrong.

    Without a health check its port must accept connections: a busy program is not a sick one.
    """
    if check is None:
        return await accepts(address)
    return await _answers(address, check.method, check.path, float(check.timeout_seconds), judged=True)


async def accepts(address: str) -> str:
    """Return "" when a connection to `host:port` is accepted, else why not."""
    try:
        async with asyncio.timeout(DEFAULT_TIMEOUT_SECONDS):
            _, writer = await _connect(address)
            await _close(writer)
    except TimeoutError:
        return f"its port did not accept a connection within {DEFAULT_TIMEOUT_SECONDS:.0f} s"
    except OSError:
        return "it does not listen on its PORT"
    return ""


async def _answers(address: str, method: str, path: str, timeout_seconds: float, *, judged: bool) -> str:
    asked = f"{method} {path}"
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    request = (
        f"{method} {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: unkey-agent\r\nAccept: */*\r\n"
        f"{length}Connection: close\r\n\r\n"
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await _connect(address)
            try:
                writer.write(request.encode())
                await writer.drain()
                line = await reader.readuntil(b"\n")
            finally:
                await _close(writer)
    except TimeoutError:
        return f"{asked} was not answered within {timeout_seconds:g} s"
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionResetError, BrokenPipeError):
        return f"{asked} was not answered in HTTP"
    except OSError:
        return "it does not listen on its PORT"
    status = status_of(line)
    if status is None:
        return f"{asked} was not answered in HTTP"
    if judged and not 200 <= status < 400:
        return f"{asked} was answered by status {status}"
    return ""


def status_of(line: bytes) -> int | None:
    """Return the status code of an HTTP/1 status line (RFC 9112, section 4), or None if it is none."""
    parts = line.split(b" ", 2)
    if len(parts) < 2 or parts[0] not in (b"HTTP/1.0", b"HTTP/1.1"):
        return None
    digits = parts[1].strip()
    if len(digits) != 3 or not digits.isdigit() or digits < b"100":
        return None
    return int(digits)


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=_MAX_STATUS_LINE)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
