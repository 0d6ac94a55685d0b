"""The published SDK's story, run as a program of its own: `python -I sdk_story.py URL ROOT_KEY`.

The SDK installs itself as `unkey.py`, inside a package of the same name as this project's. Here that
name is given to the SDK alone, so that neither hides the other.
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


def story(url: str, root_key: str) -> dict[str, object]:
    """Create, verify, update and delete through the SDK; return what was seen."""
    seen: dict[str, object] = {}
    with Unkey(root_key=root_key, server_url=url) as sdk:
        api_id = sdk.apis.create_api(name="sdk story").data.api_id
        seen["api"] = sdk.apis.get_api(api_id=api_id).data.name
        key = sdk.keys.create_key(
            api_id=api_id,
            prefix="sdk",
            name="first",
            external_id="ada",
            meta={"plan": "pro"},
            permissions=["documents.read"],
            credits={"remaining": 3},
            ratelimits=[{"name": "requests", "limit": 10, "duration": 60000, "auto_apply": True}],
        ).data
        verified = sdk.keys.verify_key(key=key.key, permissions="documents.read").data
        seen["verified"] = [verified.valid, verified.code, verified.credits, verified.identity.external_id]
        sdk.keys.update_key(
            key_id=key.key_id, name=None, credits={"remaining": 1, "refill": None}, enabled=False
        )
        shown = sdk.keys.get_key(key_id=key.key_id).data
        seen["updated"] = [shown.name, shown.credits.remaining, shown.enabled]
        seen["disabled"] = sdk.keys.verify_key(key=key.key).data.code
        listed = sdk.apis.list_keys(api_id=api_id)
        page = listed.result if hasattr(listed, "result") else listed
        seen["listed"] = [one.key_id == key.key_id for one in page.data]
        sdk.keys.delete_key(key_id=key.key_id)
        seen["deleted"] = sdk.keys.verify_key(key=key.key).data.code
        try:
            sdk.keys.get_key(key_id=key.key_id)
        except errors.NotFoundErrorResponse as refused:
            seen["not found"] = refused.data.error.type
        try:
            sdk.keys.verify_key(key=sdk.keys.create_key(api_id=api_id).data.key, permissions="((")
        except errors.BadRequestErrorResponse as refused:
            seen["bad request"] = refused.data.error.title
        sdk.apis.delete_api(api_id=api_id)
        project = sdk.projects.create_project(name="SDK", slug="sdk-story").data
        seen["project"] = sdk.projects.get_project(project=project.id).data.slug
    return seen


if __name__ == "__main__":
    json.dump(story(sys.argv[1], sys.argv[2]), sys.stdout)
