"""The demo's story told by the published Python SDK; run by `test_sdk.py` in a process of its own.

The SDK installs itself as `unkey.py`, inside a package of the same name as this project's. Here that
name is bound to the SDK alone. Prints one JSON document.
"""

import json
import sys
import sysconfig
import types
from pathlib import Path

package = types.ModuleType("unkey")
package.__path__ = [str(Path(sysconfig.get_paths()["purelib"]) / "unkey")]
sys.modules["unkey"] = package

from unkey.py import Unkey, errors  # type: ignore[import-not-found, unused-ignore]  # noqa: E402


def main(server_url: str, root_key: str) -> None:
    """Create an API and a key, verify, update, verify, delete, verify; create a project, list deployments."""
    with Unkey(root_key=root_key, server_url=server_url) as client:
        api = client.apis.create_api(name="sdk-story").data
        key = client.keys.create_key(
            api_id=api.api_id,
            prefix="sdk",
            name="first",
            external_id="customer-1",
            meta={"plan": "pro"},
            permissions=["documents.read"],
            credits={"remaining": 10},
            ratelimits=[{"name": "requests", "limit": 100, "duration": 60_000, "auto_apply": True}],
        ).data
        fresh = client.keys.verify_key(key=key.key, permissions="documents.read").data
        client.keys.update_key(key_id=key.key_id, name="renamed", enabled=False)
        shown = client.keys.get_key(key_id=key.key_id).data
        disabled = _until(client, key.key, "DISABLED")
        client.keys.delete_key(key_id=key.key_id)
        deleted = _until(client, key.key, "NOT_FOUND")
        project = client.projects.create_project(name="From the SDK", slug="from-the-sdk").data
        listed = client.deployments.list_deployments()
        try:
            client.apis.get_api(api_id="api_does_not_exist")
            missing = "found"
        except errors.NotFoundErrorResponse as error:
            missing = str(error.status_code)
    print(
        json.dumps(
            {
                "fresh": [
                    fresh.valid,
                    str(fresh.code.value),
                    fresh.credits,
                    fresh.name,
                    fresh.meta,
                    fresh.permissions,
                ],
                "limits": [[limit.name, limit.limit, limit.remaining] for limit in fresh.ratelimits or []],
                "identity": fresh.identity.external_id if fresh.identity else None,
                "shown": [shown.name, shown.enabled, shown.start[:4]],
                "disabled": disabled,
                "deleted": deleted,
                "project": project.id[:5],
                "deployments": [
                    [row.project, row.app, row.environment, row.status.value] for row in listed.result.data
                ],
                "missing": missing,
            }
        )
    )


def _until(client: Unkey, key: str, code: str) -> str:
    """Verify until the edge has seen the change (within a second); returns the last code."""
    seen = ""
    for _ in range(100):
        seen = str(client.keys.verify_key(key=key).data.code.value)
        if seen == code:
            break
    return seen


main(*sys.argv[1:])
