"""APIs and their keys, identities, permissions and roles, root keys: what `/v2` does, for people.

A view carries out the `/v2` operation of the same name, as whoever asks; their role stands for its permissions.
"""

from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.console.rest.access import WorkspaceView
from apps.console.rest.describing import NOTHING, Body, Moment, NoQuery, PageQuery, SearchQuery, operation
from apps.console.rest.pages import page_of
from apps.keys import queries
from apps.keys.models import Api
from apps.workspaces import queries as workspaces
from apps.workspaces.models import RootKey
from apps.workspaces.permissions import everything
from apps.workspaces.roles import Action
from unkey import errors
from unkey.actors import Principal
from unkey.rpc.call import Call, Page
from unkey.rpc.client_address import from_headers
from unkey.rpc.routes import routes
from unkey.rpc.schema import Schema, nullable, obj, string
from unkey.search import containing

SECRET = obj(
    {
        "keyId": string(),
        "plaintext": nullable(string(about="the key's text; shown once, and null in a repeated answer")),
    }
)


def answer_of(name: str) -> Schema:
    """Return the schema of what an operation of `/v2` answers."""
    schema = routes()[name].response
    if schema is None:
        raise TypeError(f"{name} answers nothing")
    return schema


class OperationView(WorkspaceView):
    """The base of views that carry out operations of `/v2`."""

    def carry_out(self, name: str, body: dict[str, Any]) -> Any:
        """Carry out an operation as whoever asks, and return its `data`, or a page of a list.

        Args:
            name: of the operation.
            body: as the operation takes it.

        Raises:
            InvalidInput: what the address adds to the body is no id.
        """
        route = routes()[name]
        if route.checker is None:
            raise TypeError(f"{name} has no JSON body")
        found = route.checker.violations(body)
        if found:
            raise errors.InvalidInput(found[0].message, violations=tuple(found))
        principal = Principal(
            self.workspace.id,
            "user",
            str(self.user.pk),
            self.user.get_username(),
            frozenset(everything(self.workspace.id)),
        )
        answer = route.handler(
            Call(
                route=route,
                request_id=self.request_id,
                body=route.checker.complete(body),
                headers=self.request.headers,
                remote_ip=from_headers(self.request.META),
                principal=principal,
                actor=self.actor,
            )
        )
        if isinstance(answer, Page):
            return {"items": answer.items, "nextCursor": answer.cursor}
        return answer

    def made_key(self, name: str, body: dict[str, Any]) -> Response:
        """Carry out an operation that makes a key, and show its text this once."""
        made = self.carry_out(name, body)
        return Response({"keyId": made["keyId"], "plaintext": made["key"]}, status=201)


class ApiSerializer(serializers.Serializer[Any]):
    """An API: a name for a space of keys."""

    id = serializers.CharField()
    name = serializers.CharField()
    keySpaceId = serializers.CharField(source="key_space_id")
    deleteProtection = serializers.BooleanField(source="delete_protection")
    createdAt = Moment(source="created_at")


class Apis(OperationView):
    """The APIs of a workspace."""

    needs = {"GET": Action.READ, "POST": Action.KEYS}

    _NEW = Body.of("apis.createApi")

    @operation("apis.list", answer=ApiSerializer, page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the APIs of the workspace, the newest first."""
        query = SearchQuery().read(request)
        rows = Api.objects.filter(deleted_at=None)
        if query.get("search"):
            rows = rows.filter(containing(query["search"], "id", "name"))
        return Response(page_of(rows, query, lambda page: ApiSerializer(page, many=True).data))

    @operation("apis.create", answer=ApiSerializer, body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Make an API."""
        made = self.carry_out("apis.createApi", self._NEW.read(request))
        return Response(ApiSerializer(queries.get_api(made["apiId"])).data, status=201)


class ApiDetail(OperationView):
    """One API."""

    needs = {"GET": Action.READ, "DELETE": Action.DELETE}

    @operation("apis.get", answer=ApiSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, api: str) -> Response:
        """Return an API."""
        NoQuery().read(request)
        return Response(ApiSerializer(queries.get_api(api)).data)

    @operation("apis.delete", body=NOTHING, status=204)
    def delete(self, request: Request, workspace: str, api: str) -> Response:
        """Delete an API; its keys stop working."""
        NOTHING.read(request)
        self.carry_out("apis.deleteApi", {"apiId": api})
        return Response(status=204)


class KeysQuery(PageQuery):
    """Which keys of an API."""

    externalId = serializers.CharField(max_length=255, required=False, help_text="of the identity")


class Keys(OperationView):
    """The keys of an API."""

    needs = {"GET": Action.READ, "POST": Action.KEYS}

    _NEW = Body.of("keys.createKey", without=["apiId"])

    @operation("keys.list", shape=answer_of("apis.listKeys"), page=True, query=KeysQuery)
    def get(self, request: Request, workspace: str, api: str) -> Response:
        """List the keys of an API, in the order of their ids."""
        query = KeysQuery().read(request)
        return Response(self.carry_out("apis.listKeys", {**query, "apiId": api}))

    @operation("keys.create", shape=SECRET, body=_NEW, status=201)
    def post(self, request: Request, workspace: str, api: str) -> Response:
        """Make a key; its text is shown once."""
        return self.made_key("keys.createKey", {**self._NEW.read(request), "apiId": api})


class KeyDetail(OperationView):
    """One key."""

    needs = {"GET": Action.READ, "PATCH": Action.KEYS, "DELETE": Action.KEYS}

    _CHANGES = Body.of("keys.updateKey", without=["keyId"])
    _HOW = Body.of("keys.deleteKey", without=["keyId"])

    @operation("keys.get", shape=answer_of("keys.getKey"), query=NoQuery)
    def get(self, request: Request, workspace: str, api_key: str) -> Response:
        """Return a key and what it may do."""
        NoQuery().read(request)
        return Response(self.carry_out("keys.getKey", {"keyId": api_key}))

    @operation("keys.update", shape=answer_of("keys.getKey"), body=_CHANGES)
    def patch(self, request: Request, workspace: str, api_key: str) -> Response:
        """Change what is mentioned of a key; null clears, lists replace the whole set."""
        self.carry_out("keys.updateKey", {**self._CHANGES.read(request), "keyId": api_key})
        return Response(self.carry_out("keys.getKey", {"keyId": api_key}))

    @operation("keys.delete", body=_HOW, status=204)
    def delete(self, request: Request, workspace: str, api_key: str) -> Response:
        """Delete a key; it stops working everywhere within a second."""
        self.carry_out("keys.deleteKey", {**self._HOW.read(request), "keyId": api_key})
        return Response(status=204)


class KeyReroll(OperationView):
    """A key anew."""

    needs = {"POST": Action.KEYS}

    _HOW = Body.of("keys.rerollKey", without=["keyId"])

    @operation("keys.reroll", shape=SECRET, body=_HOW, status=201)
    def post(self, request: Request, workspace: str, api_key: str) -> Response:
        """Replace a key by a new one of the same settings; its text is shown once."""
        return self.made_key("keys.rerollKey", {**self._HOW.read(request), "keyId": api_key})


class KeyCredits(OperationView):
    """What a key has left."""

    needs = {"POST": Action.KEYS}

    _CHANGE = Body.of("keys.updateCredits", without=["keyId"])

    @operation("keys.updateCredits", shape=answer_of("keys.updateCredits"), body=_CHANGE)
    def post(self, request: Request, workspace: str, api_key: str) -> Response:
        """Set, raise or lower the credits of a key."""
        body = {**self._CHANGE.read(request), "keyId": api_key}
        return Response(self.carry_out("keys.updateCredits", body))


class Listed(OperationView):
    """The base of what is listed and made by two operations."""

    needs = {"GET": Action.READ, "POST": Action.KEYS}
    lists: ClassVar[str]

    def get(self, request: Request, workspace: str) -> Response:
        """Return a page."""
        return Response(self.carry_out(self.lists, SearchQuery().read(request)))


class Identities(Listed):
    """The identities of a workspace."""

    lists = "identities.listIdentities"
    _NEW = Body.of("identities.createIdentity")

    @operation("identities.list", shape=answer_of(lists), page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the identities of the workspace, in the order of their ids."""
        return super().get(request, workspace)

    @operation("identities.create", shape=answer_of("identities.getIdentity"), body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Make an identity."""
        made = self.carry_out("identities.createIdentity", self._NEW.read(request))
        return Response(
            self.carry_out("identities.getIdentity", {"identity": made["identityId"]}), status=201
        )


class IdentityDetail(OperationView):
    """One identity."""

    needs = {"GET": Action.READ, "PATCH": Action.KEYS, "DELETE": Action.KEYS}

    _CHANGES = Body.of("identities.updateIdentity", without=["identity"])

    @operation("identities.get", shape=answer_of("identities.getIdentity"), query=NoQuery)
    def get(self, request: Request, workspace: str, identity: str) -> Response:
        """Return an identity, by id or external id."""
        NoQuery().read(request)
        return Response(self.carry_out("identities.getIdentity", {"identity": identity}))

    @operation("identities.update", shape=answer_of("identities.updateIdentity"), body=_CHANGES)
    def patch(self, request: Request, workspace: str, identity: str) -> Response:
        """Change the meta or the limits of an identity; both replace what was there."""
        body = {**self._CHANGES.read(request), "identity": identity}
        return Response(self.carry_out("identities.updateIdentity", body))

    @operation("identities.delete", body=NOTHING, status=204)
    def delete(self, request: Request, workspace: str, identity: str) -> Response:
        """Delete an identity; its keys go on working without it."""
        NOTHING.read(request)
        self.carry_out("identities.deleteIdentity", {"identity": identity})
        return Response(status=204)


class Permissions(Listed):
    """The permissions of a workspace."""

    lists = "permissions.listPermissions"
    _NEW = Body.of("permissions.createPermission")

    @operation("permissions.list", shape=answer_of(lists), page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the permissions of the workspace, in the order of their ids."""
        return super().get(request, workspace)

    @operation("permissions.create", shape=answer_of("permissions.getPermission"), body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Make a permission."""
        made = self.carry_out("permissions.createPermission", self._NEW.read(request))
        shown = self.carry_out("permissions.getPermission", {"permission": made["permissionId"]})
        return Response(shown, status=201)


class PermissionDetail(OperationView):
    """One permission."""

    needs = {"GET": Action.READ, "DELETE": Action.KEYS}

    @operation("permissions.get", shape=answer_of("permissions.getPermission"), query=NoQuery)
    def get(self, request: Request, workspace: str, permission: str) -> Response:
        """Return a permission, by id or slug."""
        NoQuery().read(request)
        return Response(self.carry_out("permissions.getPermission", {"permission": permission}))

    @operation("permissions.delete", body=NOTHING, status=204)
    def delete(self, request: Request, workspace: str, permission: str) -> Response:
        """Delete a permission; no key and no role has it any more."""
        NOTHING.read(request)
        self.carry_out("permissions.deletePermission", {"permission": permission})
        return Response(status=204)


class Roles(Listed):
    """The roles of a workspace's keys."""

    lists = "permissions.listRoles"
    _NEW = Body.of("permissions.createRole")

    @operation("roles.list", shape=answer_of(lists), page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the roles of the workspace's keys, in the order of their ids."""
        return super().get(request, workspace)

    @operation("roles.create", shape=answer_of("permissions.getRole"), body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Make a role."""
        made = self.carry_out("permissions.createRole", self._NEW.read(request))
        return Response(self.carry_out("permissions.getRole", {"role": made["roleId"]}), status=201)


class RoleDetail(OperationView):
    """One role."""

    needs = {"GET": Action.READ, "PUT": Action.KEYS, "DELETE": Action.KEYS}

    _PERMISSIONS = Body.of("permissions.setRolePermissions", without=["roleId"])

    @operation("roles.get", shape=answer_of("permissions.getRole"), query=NoQuery)
    def get(self, request: Request, workspace: str, role: str) -> Response:
        """Return a role with its permissions, by id or name."""
        NoQuery().read(request)
        return Response(self.carry_out("permissions.getRole", {"role": role}))

    @operation("roles.setPermissions", shape=answer_of("permissions.getRole"), body=_PERMISSIONS)
    def put(self, request: Request, workspace: str, role: str) -> Response:
        """Give a role exactly these permissions; those that do not exist are made."""
        body = {**self._PERMISSIONS.read(request), "roleId": role}
        self.carry_out("permissions.setRolePermissions", body)
        return Response(self.carry_out("permissions.getRole", {"role": role}))

    @operation("roles.delete", body=NOTHING, status=204)
    def delete(self, request: Request, workspace: str, role: str) -> Response:
        """Delete a role; no key has it any more."""
        NOTHING.read(request)
        self.carry_out("permissions.deleteRole", {"role": role})
        return Response(status=204)


class RootKeySerializer(serializers.Serializer[Any]):
    """A root key, without its text."""

    id = serializers.CharField()
    name = serializers.CharField(allow_blank=True)
    start = serializers.CharField(help_text="its first characters")
    end = serializers.CharField(help_text="its last characters")
    enabled = serializers.BooleanField()
    permissions = serializers.ListField(child=serializers.CharField())
    createdAt = Moment(source="created_at")
    expiresAt = Moment(source="expires_at", allow_null=True)
    lastUsedAt = Moment(source="last_used_at", allow_null=True)


class RootKeys(OperationView):
    """The root keys of a workspace."""

    needs = {"GET": Action.ROOT_KEYS, "POST": Action.ROOT_KEYS}

    _NEW = Body.of("rootKeys.createKey")

    @operation("rootKeys.list", answer=RootKeySerializer, page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the root keys of the workspace, the newest first."""
        query = SearchQuery().read(request)
        rows = workspaces.root_keys()
        if query.get("search"):
            rows = rows.filter(containing(query["search"], "id", "name", "start"))
        return Response(page_of(rows, query, _show_root_keys))

    @operation("rootKeys.create", shape=SECRET, body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Make a root key, which manages the workspace through /v2; its text is shown once."""
        return self.made_key("rootKeys.createKey", self._NEW.read(request))


class RootKeyDetail(OperationView):
    """One root key."""

    needs = {"GET": Action.ROOT_KEYS, "PATCH": Action.ROOT_KEYS, "DELETE": Action.ROOT_KEYS}

    _CHANGES = Body.of("rootKeys.updateKey", without=["keyId"])

    @operation("rootKeys.get", answer=RootKeySerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, root_key: str) -> Response:
        """Return a root key."""
        NoQuery().read(request)
        return Response(RootKeySerializer(workspaces.find_root_key(root_key)).data)

    @operation("rootKeys.update", answer=RootKeySerializer, body=_CHANGES)
    def patch(self, request: Request, workspace: str, root_key: str) -> Response:
        """Change a root key's name, state or permissions."""
        self.carry_out("rootKeys.updateKey", {**self._CHANGES.read(request), "keyId": root_key})
        return Response(RootKeySerializer(workspaces.find_root_key(root_key)).data)

    @operation("rootKeys.delete", body=NOTHING, status=204)
    def delete(self, request: Request, workspace: str, root_key: str) -> Response:
        """Stop a root key for good."""
        NOTHING.read(request)
        self.carry_out("rootKeys.deleteKey", {"keyId": root_key})
        return Response(status=204)


class RootKeyReroll(OperationView):
    """A root key anew."""

    needs = {"POST": Action.ROOT_KEYS}

    _HOW = Body.of("rootKeys.rerollKey", without=["keyId"])

    @operation("rootKeys.reroll", shape=SECRET, body=_HOW, status=201)
    def post(self, request: Request, workspace: str, root_key: str) -> Response:
        """Replace a root key by a new one that may do the same; its text is shown once."""
        return self.made_key("rootKeys.rerollKey", {**self._HOW.read(request), "keyId": root_key})


def _show_root_keys(rows: list[RootKey]) -> list[Any]:
    return list(RootKeySerializer(rows, many=True).data)
