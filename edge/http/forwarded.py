"""Who a request comes from, past proxies: Forwarded (RFC 7239) and X-Forwarded-*, read and written.

What arrives is believed only of a peer in TRUSTED_PROXIES, and only as far as the addresses in it are trusted.
"""

import re
from collections.abc import Iterable

from edge.http.request import Field, host_name
from unkey.rpc.client_address import client_and_hops, trusted

TOLD_BY = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PAIR = re.compile(
    rb"[ \t]*(" + _TOKEN + rb")=(" + _TOKEN + rb'|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*")[ \t]*'
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_PLAIN = re.compile(rb"[0-9A-Za-z._-]+")


class Hearsay:
    """What proxies have told of a request.

    Args:
        client: its address.
        hops: the client, then the proxies between it and here.
        secure: whether the client came by TLS; None: nobody has said.
        host: the host that the client asked for; empty: nobody has said.
    """

    __slots__ = ("client", "hops", "host", "secure")

    def __init__(self, hops: list[bytes], secure: bool | None, host: bytes) -> None:
        self.client = hops[0]
        self.hops = hops
        self.secure = secure
        self.host = host


def elements(value: bytes) -> list[dict[bytes, bytes]] | None:
    """Return the elements of a Forwarded header, names in lower case; None if it is malformed."""
    found: list[dict[bytes, bytes]] = []
    current: dict[bytes, bytes] = {}
    at = 0
    while True:
        if pair := _PAIR.match(value, at):
            name, text = pair[1].lower(), pair[2]
            if name in current:
                return None
            current[name] = _ESCAPED.sub(rb"\1", text[1:-1]) if text.startswith(b'"') else text
            at = pair.end()
        else:  # an empty pair or element is none
            while value[at : at + 1] in (b" ", b"\t"):
                at += 1
        mark = value[at : at + 1]
        if mark not in (b";", b",", b""):
            return None
        at += 1
        if mark != b";":
            if current:
                found.append(current)
            current = {}
        if not mark:
            return found


def told(peer: bytes, fields: Iterable[Field]) -> Hearsay | None:
    """Return what a trusted peer has told of a request; None: nothing.

    X-Forwarded-For goes before Forwarded, where both are told.

    Args:
        peer: address of the socket's other end, which is in TRUSTED_PROXIES.
    """
    values: dict[bytes, list[bytes]] = {}
    for lower, _, value in fields:
        if lower in TOLD_BY:
            values.setdefault(lower, []).append(value.strip(b" \t"))
    if not values:
        return None
    steps = elements(b",".join(values.get(b"forwarded", ()))) or []
    listed = b",".join(values.get(b"x-forwarded-for", ()))
    plain = not listed and bool(steps)
    if plain:
        listed = b",".join(_address(step.get(b"for", b"unknown")) for step in steps)
    chain = client_and_hops(peer.decode(), listed.decode("latin-1"))
    hops = [each.encode("latin-1") for each in chain]
    scheme, host = _last(values, b"x-forwarded-proto"), _last(values, b"x-forwarded-host")
    if plain and 1 < len(chain) <= len(steps) + 1:
        # The proxy that the client spoke to knows by what, and to whom.
        step = steps[len(steps) + 1 - len(chain)]
        scheme, host = scheme or step.get(b"proto", b""), host or step.get(b"host", b"")
    secure = {b"https": True, b"http": False}.get(scheme.lower())
    return Hearsay(hops, secure, host if host_name(host) else b"")


def _last(values: dict[bytes, list[bytes]], name: bytes) -> bytes:
    return values[name][-1].rpartition(b",")[2].strip(b" \t") if name in values else b""


def _address(node: bytes) -> bytes:
    # A comma would make two of it, and what has one is no address.
    return b"unknown" if b"," in node else node


def lines(hops: list[bytes], secure: bool, host: bytes) -> bytes:
    """Return the headers that tell an app of its client, each with its CRLF.

    Args:
        hops: the client's address, then those of the proxies between it and here.
        secure: whether the client came by TLS.
        host: whom the client asked for.
    """
    scheme = b"https" if secure else b"http"
    first, *others = [b"for=" + _node(hop) for hop in hops]
    quoted = host if _PLAIN.fullmatch(host) else b'"%b"' % host
    forwarded = b", ".join([b"%b;host=%b;proto=%b" % (first, quoted, scheme), *others])
    return b"Forwarded: %b\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n" % (
        forwarded,
        b", ".join(hops),
        scheme,
        host,
    )


def _node(address: bytes) -> bytes:
    return b'"[%b]"' % address if b":" in address else address


def believed(peer: bytes) -> bool:
    """Say whether a peer is a trusted proxy."""
    return trusted(peer.decode())
