"""Chunked bodies: a strict incremental decoder (RFC 9112, section 7.1)."""

import re

# Extensions are read over (7.1.1 lets a recipient ignore them) but never passed on.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*+;[\t -~\x80-\xff]*+)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t -~\x80-\xff]*+\r\n")
_LINE_BYTES = 4096
_TRAILER_BYTES = 16 * 1024


class BadChunk(ValueError):
    """The body does not follow the chunked coding."""


class ChunkDecoder:
    """Turns a chunked body into its content, however the bytes are cut.

    `trailers` holds the raw trailer lines after the end.
    """

    __slots__ = ("_held", "_in_trailers", "_remaining", "trailers")

    def __init__(self) -> None:
        self._held = b""
        self._remaining = 0  # of the current chunk, its CRLF included
        self._in_trailers = False
        self.trailers = b""

    def feed(self, received: bytes) -> tuple[list[bytes], bool, bytes]:
        """Take the next bytes; return (content pieces, ended?, bytes after the end).

        Raises:
            BadChunk: not chunked coding; the connection cannot be used further.
        """
        text = self._held + received if self._held else received
        self._held = b""
        pieces: list[bytes] = []
        at, size = 0, len(text)
        while at < size:
            if self._in_trailers:
                return self._end(text[at:], pieces)
            if self._remaining:
                at = self._content(text, at, pieces)
                continue
            line = _SIZE.match(text, at)
            if line is None:
                self._check_partial(text, at)
                self._held = text[at:]
                break
            if line.end() - at > _LINE_BYTES:
                raise BadChunk("a chunk's extension is too long")
            at = line.end()
            if chunk := int(line[1], 16):
                self._remaining = chunk + 2
            else:
                self._in_trailers = True
        return pieces, False, b""

    def _content(self, text: bytes, at: int, pieces: list[bytes]) -> int:
        if self._remaining > 2:
            stop = min(len(text), at + self._remaining - 2)
            pieces.append(text[at:stop])
            self._remaining -= stop - at
            at = stop
        while self._remaining in (1, 2) and at < len(text):
            if text[at] != (0x0D if self._remaining == 2 else 0x0A):
                raise BadChunk("a chunk is longer than its size says")
            self._remaining -= 1
            at += 1
        return at

    def _check_partial(self, text: bytes, at: int) -> None:
        # A line that is complete, or too long, and still not a chunk size, never becomes one.
        if text.find(b"\n", at) >= 0 or len(text) - at > _LINE_BYTES or not _PREFIX.fullmatch(text, at):
            raise BadChunk("not a chunk size")

    def _end(self, text: bytes, pieces: list[bytes]) -> tuple[list[bytes], bool, bytes]:
        at = 0
        while True:
            if at > _TRAILER_BYTES:
                break
            if text.startswith(b"\r\n", at):
                self.trailers = text[:at]
                return pieces, True, text[at + 2 :]
            line = _TRAILER.match(text, at)
            if line is None:
                break
            at = line.end()
        if text.find(b"\n", at) >= 0 or len(text) > _TRAILER_BYTES:
            raise BadChunk("not a trailer")
        self._held = text
        return pieces, False, b""


_PREFIX = re.compile(rb"[0-9A-Fa-f]{1,15}+(?:[ \t]*+(?:;[\t -~\x80-\xff]*+)?)?\r?")
