"""The ipRules policy: which addresses may call (reference, data-plane.md 1.4: deny beats allow)."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import Any

from edge.sentinel.decision import Call, State, Unsupported
from unkey.errors import AddressDenied, Fault

_REMEMBERED = 10_000


class Addresses:
    """A set of addresses by their ranges, of both versions; looked up in the logarithm of their number.

    Args:
        ranges: addresses and CIDR ranges.

    Raises:
        ValueError: one is neither.
    """

    def __init__(self, ranges: Iterable[str]) -> None:
        networks = [_network(each) for each in ranges]
        self._bounds: dict[int, tuple[list[int], list[int]]] = {}
        for version in (4, 6):
            found = sorted(collapse_addresses(each for each in networks if each.version == version))  # type: ignore[type-var]
            self._bounds[version] = (
                [int(each.network_address) for each in found],
                [int(each.broadcast_address) for each in found],
            )

    def __bool__(self) -> bool:
        return any(first for first, _ in self._bounds.values())

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        first, last = self._bounds[address.version]
        number = int(address)
        place = bisect_right(first, number) - 1
        return place >= 0 and number <= last[place]


class IpRules:
    """A compiled ipRules policy.

    Args:
        body: `allow` and `deny`, lists of CIDR ranges or addresses, IPv4 and IPv6. An address in
            `deny` is refused; with a non-empty `allow`, so is every address outside of it.

    Raises:
        Unsupported: a range cannot be read, or there is none.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._allow = _addresses(body.get("allow"))
        self._deny = _addresses(body.get("deny"))
        if not self._allow and not self._deny:
            raise Unsupported("ipRules has neither allow nor deny")
        self._known: dict[bytes, bool] = {}

    def apply(self, call: Call, state: State) -> Fault | None:
        """Refuse a client whose address may not call."""
        passes = self._known.get(call.peer)
        if passes is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            passes = self._known[call.peer] = self._passes(call.peer)
        return None if passes else AddressDenied("Requests from this address are not allowed.")

    def _passes(self, peer: bytes) -> bool:
        address = read_address(peer)
        if address is None or address in self._deny:
            return False
        return not self._allow or address in self._allow


def read_address(peer: bytes) -> IPv4Address | IPv6Address | None:
    """Return a client's address, an IPv4-mapped one as IPv4; None if it is none."""
    try:
        return unmapped(ip_address(peer.decode("ascii")))
    except ValueError:
        return None


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv4-mapped IPv6 address stands for, else the address itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _network(text: str) -> IPv4Network | IPv6Network:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no address range")
    network = ip_network(text, strict=False)
    first = unmapped(network.network_address)
    if isinstance(network, IPv6Network) and isinstance(first, IPv4Address) and network.prefixlen >= 96:
        return IPv4Network((first, network.prefixlen - 96))
    return network


def _addresses(ranges: Any) -> Addresses:
    if ranges is not None and not isinstance(ranges, list):
        raise Unsupported("an ipRules list is not a list")
    try:
        return Addresses(ranges or ())
    except (ValueError, TypeError) as error:
        raise Unsupported(f"an address range cannot be read: {error}") from None
