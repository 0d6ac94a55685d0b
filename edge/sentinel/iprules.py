"""The ipRules policy: which addresses may call (reference, data-plane.md 1.4: deny beats allow)."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from edge.sentinel.decision import Call, State, Unsupported
from unkey.errors import AddressDenied, Fault

_REMEMBERED = 10_000

Network = IPv4Network | IPv6Network


class IpRules:
    """A compiled ipRules policy.

    Args:
        body: `allow` and `deny`, lists of CIDR ranges or addresses, IPv4 and IPv6. An address in
            `deny` is refused; with a non-empty `allow`, so is every address outside of it.

    Raises:
        Unsupported: a range cannot be read, or there is none.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._allow = _networks(body.get("allow"))
        self._deny = _networks(body.get("deny"))
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
        try:
            address = unmapped(ip_address(peer.decode("ascii")))
        except ValueError:
            return False
        if any(address in network for network in self._deny):
            return False
        return not self._allow or any(address in network for network in self._allow)


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv4-mapped IPv6 address stands for, else the address itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _networks(ranges: Any) -> tuple[Network, ...]:
    if ranges is None:
        return ()
    if not isinstance(ranges, list):
        raise Unsupported("an ipRules list is not a list")
    try:
        return tuple(ip_network(each, strict=False) for each in ranges)
    except (ValueError, TypeError) as error:
        raise Unsupported(f"an address range cannot be read: {error}") from None
