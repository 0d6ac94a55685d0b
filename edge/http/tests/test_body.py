"""The chunked coding, however its bytes are cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edge.http.body import BadChunk, ChunkDecoder


def decode(raw: bytes, cuts: list[int]) -> tuple[bytes, bool, bytes, bytes]:
    decoder, content, rest, ended = ChunkDecoder(), b"", b"", False
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        if ended:
            rest += raw[start:stop]
            continue
        pieces, ended, rest = decoder.feed(raw[start:stop])
        content += b"".join(pieces)
    return content, ended, rest, decoder.trailers


CUTS = st.lists(st.integers(0, 1000), max_size=10)


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    extension=st.sampled_from([b"", b";a", b' ; a="b"', b";"]),
    trailers=st.sampled_from([b"", b"A: b\r\n", b"A:\r\nB: c\r\n"]),
    rest=st.binary(max_size=10),
    cuts=CUTS,
)
def test_content_survives_every_cut(pieces, extension, trailers, rest, cuts):
    chunks = b"".join(b"%X%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    raw = chunks + b"0" + extension + b"\r\n" + trailers + b"\r\n" + rest
    assert decode(raw, cuts) == (b"".join(pieces), True, rest, trailers)


@given(
    raw=st.lists(st.sampled_from([b"1", b"a", b"\r\n", b"\r", b"\n", b"0", b";", b" ", b"\0", b":"])),
    cuts=CUTS,
)
def test_a_verdict_does_not_depend_on_the_cuts(raw, cuts):
    text = b"".join(raw)

    def outcome(where):
        try:
            content, ended, rest, trailers = decode(text, where)
        except BadChunk:
            return "refused"
        return (content, rest, trailers) if ended else "unfinished"

    whole, cut = outcome([]), outcome(cuts)
    assert whole == cut or "unfinished" in (whole, cut)
    if isinstance(whole, tuple):
        assert whole == cut
