"""The address of a caller, past the proxies that may be believed."""

from collections.abc import Mapping
from ipaddress import ip_address

from unkey.env import env


def client_address(peer: str, forwarded_for: str) -> str:
    """Return the address of the caller behind trusted proxies.

    `X-Forwarded-For` is read from its right end, where our own proxies write, and only as far as
    addresses are trusted: whoever calls us cannot choose the address that is recorded.

    Args:
        peer: address of the socket's other end.
        forwarded_for: value of the header, empty if there is none.
    """
    return client_and_hops(peer, forwarded_for)[0]


def client_and_hops(peer: str, forwarded_for: str) -> list[str]:
    """Return the address of the caller and then those of the trusted proxies up to `peer`.

    What is no address ends the chain: the proxy that wrote it is the last that is known.

    Args: as for `client_address`.
    """
    chain = [peer]
    hops = [_bare(hop) for hop in forwarded_for.split(",") if hop.strip()]
    while hops and trusted(chain[-1]) and _is_address(hops[-1]):
        chain.append(hops.pop())
    return chain[::-1]


def _bare(hop: str) -> str:
    hop = hop.strip()
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return text.isascii() and text.isprintable()


def trusted(address: str) -> bool:
    """Say whether an address is one of `TRUSTED_PROXIES`."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in env.TRUSTED_PROXIES)


def from_headers(meta: Mapping[str, str]) -> str:
    """Return the caller's address of a WSGI or Django request environment."""
    return client_address(meta.get("REMOTE_ADDR", ""), meta.get("HTTP_X_FORWARDED_FOR", ""))
