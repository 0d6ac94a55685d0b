"""The part of an event that is the same each time, as text of its row: made once, kept by who records."""

from typing import Literal

import msgspec

_encode = msgspec.json.encode


def key_facts(
    workspace_id: str, key_space_id: str, identity_id: str = "", external_id: str = "", key_id: str = ""
) -> bytes:
    """Return the columns of a verification that follow from the key."""
    return _encode([workspace_id, key_space_id, identity_id, external_id, key_id])[1:-1]


def ratelimit_facts(workspace_id: str, namespace_id: str, identifier: str) -> bytes:
    """Return the columns of a rate limit's decision that follow from who is counted."""
    return _encode([workspace_id, namespace_id, identifier])[1:-1]


def source_facts(source: Literal["api", "gateway"], app_id: str = "") -> bytes:
    """Return the columns that say who asked for a verification: a caller of the API, or the gateway before an app."""
    return _encode([source, app_id])[1:-1]
