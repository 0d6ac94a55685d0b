"""TLS of the edge: the certificate is chosen by server name, and may change at any time."""

import os
import ssl
from collections.abc import Callable
from typing import Protocol

_CACHE_SIZE = 10_000


class Pair(Protocol):
    """A certificate and its key."""

    @property
    def hostname(self) -> str:
        """The name that it is kept under, perhaps with a wildcard."""

    @property
    def chain(self) -> str:
        """PEM, leaf first."""

    @property
    def private_key(self) -> str:
        """PEM."""

    @property
    def version(self) -> int:
        """Grows with every change."""


Find = Callable[[str], Pair | None]


def server_context() -> ssl.SSLContext:
    """Return an empty context: TLS 1.2 and later, HTTP/2 or HTTP/1.1 by ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def load(context: ssl.SSLContext, pair: Pair) -> None:
    """Put a certificate into a context, without the private key touching a disk.

    Raises:
        ssl.SSLError: certificate and key do not belong together, or are not PEM.
    """
    # OpenSSL's Python binding reads files only; a memory file is one that nobody else can open by name.
    handle = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(handle, f"{pair.private_key}\n{pair.chain}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


class Certificates:
    """Chooses a context by SNI.

    Args:
        find: looks a certificate up by server name, exact or one-label wildcard.
        default_name: whose certificate clients get that name no server.
    """

    def __init__(self, find: Find, default_name: str) -> None:
        self.unknown = 0
        self.broken = 0
        self._find = find
        self._default_name = default_name
        self._contexts: dict[str, tuple[int, ssl.SSLContext]] = {}

    def listener_context(self) -> ssl.SSLContext:
        """Return the context to listen with; each handshake swaps it for the server's own."""
        context = server_context()
        context.sni_callback = self._choose
        return context

    def context(self, server_name: str) -> ssl.SSLContext | None:
        """Return the context of a server name, None if there is no usable certificate."""
        pair = self._find(server_name.lower())
        if pair is None:
            self.unknown += 1
            return None
        known = self._contexts.get(pair.hostname)
        if known is not None and known[0] == pair.version:
            return known[1]
        context = server_context()
        try:
            load(context, pair)
        except ssl.SSLError:
            self.broken += 1
            return known[1] if known is not None else None
        if len(self._contexts) >= _CACHE_SIZE:
            self._contexts.clear()
        self._contexts[pair.hostname] = (pair.version, context)
        return context

    def _choose(
        self, connection: ssl.SSLSocket | ssl.SSLObject, server_name: str | None, _: ssl.SSLContext
    ) -> int | None:
        # RFC 6066, 3: an address is no name, though some clients send theirs.
        named = server_name and not server_name[-1].isdigit() and ":" not in server_name
        context = self.context(server_name if server_name and named else self._default_name)
        if context is None:
            return int(ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        connection.context = context
        return None
