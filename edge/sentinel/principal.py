"""The principal: who calls, as policies establish it and as the app is told (reference, api.md 6.8)."""

import json
from typing import Any

import msgspec

NAME = b"X-Unkey-Principal"


def principal_line(principal: dict[str, Any]) -> bytes:
    """Return the header that tells a principal to the app, with CRLF; visible ASCII only."""
    text = msgspec.json.encode(principal)
    if not text.isascii() or b"\x7f" in text:
        text = json.dumps(principal, separators=(",", ":")).replace("\x7f", "\\u007f").encode("ascii")
    return NAME + b": " + text + b"\r\n"
