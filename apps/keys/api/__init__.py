"""Operations of `/v2` on API keys: `apis.*`, `keys.*`, `identities.*`, `permissions.*` and `portal.*`."""

from apps.keys.api import identities, keys, permissions, portal

__all__ = ["identities", "keys", "permissions", "portal"]
