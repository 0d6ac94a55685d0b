"""The ipRules policy: ranges of both families, deny before allow."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge.sentinel.decision import State, Unsupported
from edge.sentinel.engine import why_unsupported
from edge.sentinel.iprules import Addresses, IpRules, read_address, unmapped
from edge.sentinel.tests.test_engine import Call
from unkey.errors import AddressDenied


def passes(body, peer):
    rules = IpRules(body)
    first, again = (rules.apply(Call(peer=peer), State()) for _ in range(2))
    assert isinstance(first, AddressDenied | None)
    assert type(first) is type(again)
    return first is None


@pytest.mark.parametrize(
    ("body", "peer", "expected"),
    [
        ({"allow": ["192.0.2.0/24"]}, b"192.0.2.7", True),
        ({"allow": ["192.0.2.0/24"]}, b"198.51.100.1", False),
        ({"allow": ["192.0.2.7"]}, b"192.0.2.7", True),
        ({"allow": ["192.0.2.7"]}, b"192.0.2.8", False),
        ({"deny": ["192.0.2.0/24"]}, b"192.0.2.7", False),
        ({"deny": ["192.0.2.0/24"]}, b"198.51.100.1", True),
        ({"allow": ["192.0.2.0/24"], "deny": ["192.0.2.128/25"]}, b"192.0.2.200", False),
        ({"allow": ["192.0.2.0/24"], "deny": ["192.0.2.128/25"]}, b"192.0.2.100", True),
        ({"allow": ["2001:db8::/32"]}, b"2001:db8::1", True),
        ({"allow": ["2001:db8::/32"]}, b"2001:db9::1", False),
        ({"deny": ["192.0.2.0/24"]}, b"::ffff:192.0.2.7", False),
        ({"deny": ["::ffff:192.0.2.0/120"]}, b"192.0.2.7", False),
        ({"deny": ["192.0.2.0/25", "192.0.2.0/24", "192.0.2.64/26"]}, b"192.0.2.200", False),
        ({"deny": ["10.0.0.1", "10.0.0.3"]}, b"10.0.0.2", True),
        ({"deny": ["10.0.0.1", "10.0.0.3"]}, b"10.0.0.4", True),
        ({"deny": ["255.255.255.255", "::1"]}, b"255.255.255.255", False),
        ({"allow": ["0.0.0.0/0"]}, b"2001:db8::1", False),
        ({"allow": ["192.0.2.5/24"]}, b"192.0.2.9", True),
        ({"deny": ["192.0.2.0/24"]}, b"no address", False),
        ({"deny": ["192.0.2.0/24"]}, b"", False),
    ],
)
def test_who_may_call(body, peer, expected):
    assert passes(body, peer) is expected


addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)
networks = st.builds(
    lambda address, bits: ip_network((address, bits if address.version == 6 else bits % 33), strict=False),
    addresses,
    st.integers(0, 128),
)


@settings(deadline=None)
@given(st.lists(networks, max_size=8), addresses)
def test_a_set_of_ranges_has_what_one_of_them_has(ranges, address):
    mapped = [unmapped(each.network_address).version != each.version for each in ranges]
    assume(not any(mapped))
    found = Addresses(map(str, ranges))
    assert (address in found) is any(address in each for each in ranges if each.version == address.version)


@settings(deadline=None)
@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_range_or_is_refused(text):
    assert why_unsupported("ipRules", {"deny": [text]}) == "" or not _is_range(text)
    assert read_address(text.encode()) is None or ip_address(text)


def _is_range(text):
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"deny": [7]},
        {"allow": []},
        {"allow": ["300.0.0.1"]},
        {"deny": "192.0.2.1"},
        {"deny": [None]},
        {"allow": ["::/129"]},
    ],
)
def test_what_cannot_be_read_is_said(body):
    with pytest.raises(Unsupported):
        IpRules(body)
