"""The permissions that a root key can hold: legacy tuples and URN grants (reference, api.md 9.2)."""

import re

TUPLES: dict[str, tuple[str, ...]] = {
    "api": (
        "create_api",
        "read_api",
        "update_api",
        "delete_api",
        "create_key",
        "read_key",
        "update_key",
        "delete_key",
        "verify_key",
        "encrypt_key",
        "decrypt_key",
        "read_analytics",
    ),
    "ratelimit": (
        "limit",
        "create_namespace",
        "read_namespace",
        "update_namespace",
        "delete_namespace",
        "set_override",
        "read_override",
        "delete_override",
        "list_overrides",
        "read_analytics",
    ),
    "rbac": (
        *(
            f"{verb}_{thing}"
            for thing in ("permission", "role")
            for verb in ("create", "read", "update", "delete")
        ),
        "add_permission_to_key",
        "remove_permission_from_key",
        "add_role_to_key",
        "remove_role_from_key",
        "add_permission_to_role",
        "remove_permission_from_role",
    ),
    "identity": ("create_identity", "read_identity", "update_identity", "delete_identity"),
    "project": (
        "create_project",
        "read_project",
        "update_project",
        "delete_project",
        "create_app",
        "create_deployment",
        "read_deployment",
        "generate_upload_url",
        "read_gateway_requests",
        "read_runtime_logs",
    ),
    "app": ("read_app", "update_app", "delete_app", "connect_repository"),
    "environment": (
        "read_environment",
        "update_environment",
        "set_environment_variables",
        "remove_environment_variables",
        "read_environment_variables",
        "set_policies",
        "update_policy",
        "read_policies",
        *(f"{verb}_domain" for verb in ("create", "read", "delete", "verify")),
        *(f"{verb}_deployment" for verb in ("create", "read", "stop", "start", "promote", "rollback")),
    ),
    "portal": ("create_portal", "read_portal", "update_portal", "delete_portal", "create_portal_session"),
    "workspace": ("install_github", "read_workspace"),
}
"""Resource type to its actions."""

_ONLY_ANY_ID = {"rbac"}
_TUPLE = re.compile(r"(?P<kind>[a-z]+)\.(?P<id>\*|[A-Za-z0-9_-]+)\.(?P<action>[a-z_]+)\Z")
_URN = re.compile(
    r"unkey:v1:(?P<workspace>[A-Za-z0-9_]+):(?P<path>[A-Za-z0-9_*-]+(?:/[A-Za-z0-9_*-]+)*)#(?P<action>[a-z_]+|\*)\Z"
)


def everything(workspace_id: str) -> list[str]:
    """Return the full set: every tuple for any id, and the grant of every action on every resource."""
    tuples = [f"{kind}.*.{action}" for kind, actions in TUPLES.items() for action in actions]
    return [*tuples, f"unkey:v1:{workspace_id}:**#*"]


def fault_of(permission: str, workspace_id: str) -> str:
    """Return why a text is not a permission that a root key of this workspace can hold; empty if it is."""
    if permission.startswith("unkey:"):
        return _urn_fault(permission, workspace_id)
    found = _TUPLE.match(permission)
    if not found:
        return "it must read type.id.action or unkey:v1:workspace:path#action"
    kind = found["kind"]
    if kind not in TUPLES:
        return f"{kind} is not one of {', '.join(TUPLES)}"
    if found["action"] not in TUPLES[kind]:
        return f"{found['action']} is not an action of {kind}: {', '.join(TUPLES[kind])}"
    if found["id"] != "*" and (kind in _ONLY_ANY_ID or permission.endswith(".create_api")):
        return "its id must be *"
    return ""


def _urn_fault(permission: str, workspace_id: str) -> str:
    found = _URN.match(permission)
    if not found:
        return "a grant must read unkey:v1:workspace:path#action"
    if found["workspace"] != workspace_id:
        return f"it grants in another workspace than {workspace_id}"
    segments = found["path"].split("/")
    if any("*" in segment and segment not in ("*", "**") for segment in segments):
        return "* stands for a whole segment"
    if "**" in segments[:-1]:
        return "** may only end the path"
    if found["action"] == "*" and segments[-1] != "**":
        return "the action * needs a path that ends in **"
    return ""
