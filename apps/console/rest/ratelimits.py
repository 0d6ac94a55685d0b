"""Standalone rate limits: namespaces and the overrides in them."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.console.rest.describing import NOTHING, Body, Moment, NoQuery, PageQuery, SearchQuery, operation
from apps.console.rest.keys import OperationView, answer_of
from apps.console.rest.pages import page_of
from apps.ratelimits import queries, services
from apps.workspaces.roles import Action
from unkey.rpc.schema import string
from unkey.search import containing

_NAMED = Body({"name": string(1, 255, pattern=r"\S")})


class NamespaceSerializer(serializers.Serializer[Any]):
    """What identifiers are counted in."""

    id = serializers.CharField()
    name = serializers.CharField()
    createdAt = Moment(source="created_at")


class Namespaces(OperationView):
    """The namespaces of a workspace."""

    needs = {"GET": Action.READ, "POST": Action.KEYS}

    @operation("ratelimits.listNamespaces", answer=NamespaceSerializer, page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the namespaces of the workspace, the newest first."""
        query = SearchQuery().read(request)
        rows = queries.live_namespaces()
        if query.get("search"):
            rows = rows.filter(containing(query["search"], "id", "name"))
        return Response(page_of(rows, query, lambda page: NamespaceSerializer(page, many=True).data))

    @operation("ratelimits.createNamespace", answer=NamespaceSerializer, body=_NAMED, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Make a namespace."""
        name = _NAMED.read(request)["name"]
        row = services.create_namespace(self.workspace.id, name, actor=self.actor)
        return Response(NamespaceSerializer(row).data, status=201)


class NamespaceDetail(OperationView):
    """One namespace, by id or name."""

    needs = {"GET": Action.READ, "PATCH": Action.KEYS, "DELETE": Action.DELETE}

    @operation("ratelimits.getNamespace", answer=NamespaceSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str, namespace: str) -> Response:
        """Return a namespace."""
        NoQuery().read(request)
        return Response(NamespaceSerializer(queries.get_namespace(namespace)).data)

    @operation("ratelimits.renameNamespace", answer=NamespaceSerializer, body=_NAMED)
    def patch(self, request: Request, workspace: str, namespace: str) -> Response:
        """Give a namespace another name; what was counted in it stays."""
        name = _NAMED.read(request)["name"]
        row = services.rename_namespace(queries.get_namespace(namespace), name, actor=self.actor)
        return Response(NamespaceSerializer(row).data)

    @operation("ratelimits.deleteNamespace", body=NOTHING, status=204)
    def delete(self, request: Request, workspace: str, namespace: str) -> Response:
        """Delete a namespace; limits in it are refused from now on."""
        NOTHING.read(request)
        services.delete_namespace(queries.get_namespace(namespace), actor=self.actor)
        return Response(status=204)


class Overrides(OperationView):
    """The overrides of a namespace."""

    needs = {"GET": Action.READ, "PUT": Action.KEYS, "DELETE": Action.KEYS}

    _WANTED = Body.of("ratelimit.setOverride", without=["namespace"])
    _GONE = Body.of("ratelimit.deleteOverride", without=["namespace"])

    @operation(
        "ratelimits.listOverrides", shape=answer_of("ratelimit.listOverrides"), page=True, query=PageQuery
    )
    def get(self, request: Request, workspace: str, namespace: str) -> Response:
        """List the overrides of a namespace, in the order of their ids."""
        query = PageQuery().read(request)
        return Response(self.carry_out("ratelimit.listOverrides", {**query, "namespace": namespace}))

    @operation("ratelimits.setOverride", shape=answer_of("ratelimit.getOverride"), body=_WANTED)
    def put(self, request: Request, workspace: str, namespace: str) -> Response:
        """Give an identifier, or all that match a pattern, another limit."""
        body = {**self._WANTED.read(request), "namespace": namespace}
        made = self.carry_out("ratelimit.setOverride", body)
        shown = {name: body[name] for name in ("identifier", "limit", "duration")}
        return Response({"overrideId": made["overrideId"], **shown})

    @operation("ratelimits.deleteOverride", body=_GONE, status=204)
    def delete(self, request: Request, workspace: str, namespace: str) -> Response:
        """Delete the override of exactly this identifier or pattern."""
        self.carry_out("ratelimit.deleteOverride", {**self._GONE.read(request), "namespace": namespace})
        return Response(status=204)
