"""Forwarded and X-Forwarded-*: what is read of them, and what an app is told."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.http import forwarded
from edge.http.forwarded import elements, lines, told


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", []),
        (b"for=1.2.3.4", [{b"for": b"1.2.3.4"}]),
        (b"For=1.2.3.4;PROTO=https", [{b"for": b"1.2.3.4", b"proto": b"https"}]),
        (b"for=a, for=b", [{b"for": b"a"}, {b"for": b"b"}]),
        (b'for="[::1]:80";host="a.test:80"', [{b"for": b"[::1]:80", b"host": b"a.test:80"}]),
        (b'for="a\\"b"', [{b"for": b'a"b'}]),
        (b"for=a;;proto=http,,for=b;", [{b"for": b"a", b"proto": b"http"}, {b"for": b"b"}]),
        (b"for=_hidden, for=unknown", [{b"for": b"_hidden"}, {b"for": b"unknown"}]),
        (b'for="a,for=b"', [{b"for": b"a,for=b"}]),
        (b"for=a;for=b", None),
        (b"for", None),
        (b"for=", None),
        (b"for =a", None),
        (b'for="a', None),
        (b"for=[::1]", None),
        (b"for=a b", None),
        (b'for="a\x00"', None),
    ],
)
def test_elements_of_forwarded(value, expected):
    assert elements(value) == expected


def fields(*pairs):
    return [(name.lower(), name, value) for name, value in pairs]


@pytest.mark.parametrize(
    ("headers", "hops", "secure", "host"),
    [
        ([(b"X-Forwarded-For", b"1.2.3.4")], [b"1.2.3.4", b"127.0.0.1"], None, b""),
        (
            [(b"X-Forwarded-For", b"1.2.3.4"), (b"X-Forwarded-Proto", b"HTTPS")],
            [b"1.2.3.4", b"127.0.0.1"],
            True,
            b"",
        ),
        (
            [(b"Forwarded", b"for=1.2.3.4;proto=https;host=a.test")],
            [b"1.2.3.4", b"127.0.0.1"],
            True,
            b"a.test",
        ),
        ([(b"Forwarded", b'for="[2001:db8::1]:1"')], [b"2001:db8::1", b"127.0.0.1"], None, b""),
        # A proxy behind another: the first one spoke TLS with the client.
        (
            [(b"Forwarded", b"for=1.2.3.4;proto=https;host=a.test, for=127.0.0.2;proto=http;host=inner")],
            [b"1.2.3.4", b"127.0.0.2", b"127.0.0.1"],
            True,
            b"a.test",
        ),
        # Whom nobody trusts cannot say what came before him.
        (
            [(b"Forwarded", b"for=9.9.9.9;proto=https;host=evil, for=1.2.3.4;proto=http")],
            [b"1.2.3.4", b"127.0.0.1"],
            False,
            b"",
        ),
        (
            [(b"Forwarded", b"for=9.9.9.9"), (b"X-Forwarded-For", b"1.2.3.4")],
            [b"1.2.3.4", b"127.0.0.1"],
            None,
            b"",
        ),
        ([(b"Forwarded", b"for=unknown;proto=https")], [b"127.0.0.1"], None, b""),
        ([(b"Forwarded", b"proto=https")], [b"127.0.0.1"], None, b""),
        ([(b"Forwarded", b"for=1.2.3.4;")], [b"1.2.3.4", b"127.0.0.1"], None, b""),
        ([(b"Forwarded", b"for 1.2.3.4")], [b"127.0.0.1"], None, b""),
        ([(b"X-Forwarded-Host", b"a b")], [b"127.0.0.1"], None, b""),
        ([(b"X-Forwarded-Host", b"evil, a.test:80")], [b"127.0.0.1"], None, b"a.test:80"),
        ([(b"X-Forwarded-Proto", b"gopher")], [b"127.0.0.1"], None, b""),
    ],
)
def test_what_a_trusted_proxy_tells(headers, hops, secure, host):
    heard = told(b"127.0.0.1", fields(*headers))
    assert heard is not None
    assert (heard.hops, heard.secure, heard.host) == (hops, secure, host)


def test_nothing_is_told_by_other_headers():
    assert told(b"127.0.0.1", fields((b"Host", b"a"))) is None


def test_an_app_is_told_in_both_ways():
    assert lines([b"2001:db8::1", b"10.0.0.1"], True, b"a.test:8443") == (
        b'Forwarded: for="[2001:db8::1]";host="a.test:8443";proto=https, for=10.0.0.1\r\n'
        b"X-Forwarded-For: 2001:db8::1, 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a.test:8443\r\n"
    )


PIECES = st.one_of(
    st.sampled_from(
        [b"for=", b"proto=https", b"host=a", b";", b",", b'"', b"\\", b" ", b"[::1]", b"1.2.3.4", b"unknown"]
    ),
    st.binary(max_size=3),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(forwarded.TOLD_BY)), st.lists(PIECES, max_size=8).map(b"".join)),
        max_size=4,
    )
)
def test_whatever_is_told_an_app_reads_addresses_and_one_host(headers):
    heard = told(b"127.0.0.1", fields(*headers))
    if heard is None:
        return
    for hop in heard.hops:
        ip_address(hop.decode())
    text = lines(heard.hops, bool(heard.secure), heard.host or b"a.test")
    assert text.count(b"\r\n") == 4
    again = elements(text.split(b"\r\n")[0].removeprefix(b"Forwarded: "))
    assert again is not None
    assert [step[b"for"].strip(b"[]") for step in again] == heard.hops
