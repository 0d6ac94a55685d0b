"""Operations of `/v2` on API keys: `apis.*`, `keys.*`, `identities.*` and `permissions.*`."""

from apps.keys.api import identities, keys, permissions

__all__ = ["identities", "keys", "permissions"]
