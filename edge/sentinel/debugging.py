"""The signed header by which an owner sees what each policy did: `X-Unkey-Debug`, answered by `X-Unkey-Trace`.

    X-Unkey-Debug: env_….1793500000.<HMAC-SHA256 of what stands before, hexadecimal>
    X-Unkey-Trace: pol_1;kind=keyauth;outcome=passed;us=12, pol_2;kind=firewall;outcome=refused;code=firewall_denied;us=3

The control plane signs, edges check; both have the cluster's token, of which the key is derived. A signature
that is not right is as good as none: nothing in the answer tells of it.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable

from edge.sentinel.decision import State

HEADER = "X-Unkey-Debug"
MOST_SECONDS = 3600
_SHAPE = re.compile(rb"([A-Za-z0-9_]{1,64})\.([0-9]{1,12})\.([0-9a-f]{64})")
_FOR = b"gateway debugging"


def sign(token: str, environment_id: str, until: int) -> str:
    """Return the header's value.

    Args:
        token: the cluster's.
        environment_id: whose policies may be watched.
        until: Unix seconds.
    """
    text = f"{environment_id}.{until}"
    return f"{text}.{_signature(_key(token), text.encode())}"


class Debugging:
    """Checks headers.

    Args:
        tokens: the cluster's token, and earlier ones that are still taken.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._keys = tuple(_key(token) for token in tokens)

    def allows(self, value: bytes, environment_id: str, now_ms: float) -> bool:
        """Say whether a header lets its sender watch an environment's policies now."""
        found = _SHAPE.fullmatch(value)
        if found is None or found[1].decode() != environment_id:
            return False
        left = int(found[2]) - now_ms / 1000
        if not 0 < left <= MOST_SECONDS:
            return False
        text = value[: value.rindex(b".")]
        given = found[3].decode()
        return any(hmac.compare_digest(_signature(key, text), given) for key in self._keys)


def trace_line(found: State | None) -> bytes:
    """Return the header that tells a timed trace, with CRLF; empty if it was not asked for."""
    if found is None or found.times is None:
        return b""
    parts = []
    for text, began, ended in zip(found.trace, found.times, found.times[1:], strict=False):
        name, kind, outcome, *code = text.split(" ")
        why = f";code={code[0]}" if code else ""
        parts.append(f"{name};kind={kind};outcome={outcome}{why};us={(ended - began) // 1000}")
    return f"X-Unkey-Trace: {', '.join(parts)}\r\n".encode("ascii", "replace")


def _key(token: str) -> bytes:
    return hmac.digest(token.encode(), _FOR, "sha256")


def _signature(key: bytes, text: bytes) -> str:
    return hmac.new(key, text, hashlib.sha256).hexdigest()
