"""What tests of keys start from."""

from collections.abc import Callable
from typing import Any

import pytest

from apps.keys.models import KeySpace
from unkey.rpc.testing import Tenant


@pytest.fixture
def api_id(tenant: Tenant) -> str:
    """An API of the tenant."""
    return str(tenant("apis.createApi", {"name": "payments"})["apiId"])


@pytest.fixture
def make_key(tenant: Tenant, api_id: str) -> Callable[..., Any]:
    """Make a key of the API; returns `keyId` and `key`."""

    def make(**fields: Any) -> Any:
        return tenant("keys.createKey", {"apiId": api_id, **fields})

    return make


@pytest.fixture
def recoverable(api_id: str) -> None:
    """Let the API keep keys in a recoverable form."""
    KeySpace.objects.unscoped("test").filter(api=api_id).update(store_encrypted_keys=True)
