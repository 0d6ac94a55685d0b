"""Who is logged in, their workspaces, a workspace's members, personal tokens."""

from typing import Any

from django.contrib.auth import get_user, login, logout
from django.middleware.csrf import get_token
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.console import logins
from apps.console.rest.access import BySession, View, WorkspaceView
from apps.console.rest.describing import (
    NOTHING,
    Body,
    Moment,
    NoQuery,
    PageQuery,
    SearchQuery,
    operation,
)
from apps.console.rest.pages import page_of
from apps.workspaces import members, roles
from apps.workspaces.models import Membership, PersonalToken, Workspace
from apps.workspaces.roles import Action
from unkey import clock
from unkey.rpc.client_address import from_headers
from unkey.rpc.schema import moment, string
from unkey.search import containing

Role = Membership.Role


class PlaceSerializer(serializers.Serializer[Any]):
    """A workspace and the caller's place in it."""

    id = serializers.CharField()
    name = serializers.CharField()
    slug = serializers.CharField()
    enabled = serializers.BooleanField()
    suspendedAt = Moment(source="suspended_at", allow_null=True)
    role = serializers.ChoiceField(choices=Role.choices)
    may = serializers.ListField(child=serializers.CharField(), help_text="what the role allows")
    createdAt = Moment(source="created_at")


class UserSerializer(serializers.Serializer[Any]):
    """A person."""

    id = serializers.IntegerField()
    username = serializers.CharField()


class SessionSerializer(serializers.Serializer[Any]):
    """Who is logged in."""

    user = UserSerializer(allow_null=True)
    via = serializers.ChoiceField(choices=["session", "token"], allow_null=True)
    csrfToken = serializers.CharField(help_text="to be sent as X-CSRFToken with whatever changes something")


class MemberSerializer(serializers.Serializer[Any]):
    """A person's place in a workspace."""

    id = serializers.CharField()
    user = UserSerializer()
    role = serializers.ChoiceField(choices=Role.choices)
    createdAt = Moment(source="created_at")


class TokenSerializer(serializers.Serializer[Any]):
    """A personal token, without its text."""

    id = serializers.CharField()
    name = serializers.CharField()
    start = serializers.CharField(help_text="its first characters")
    role = serializers.ChoiceField(choices=Role.choices)
    user = UserSerializer()
    createdAt = Moment(source="created_at")
    expiresAt = Moment(source="expires_at")
    lastUsedAt = Moment(source="last_used_at", allow_null=True)


class NewTokenSerializer(TokenSerializer):
    """A personal token that has just been made."""

    plaintext = serializers.CharField(
        allow_null=True, help_text="its text; shown once, and null in a repeated answer"
    )


class Session(View):
    """The session of a browser, for one page that has no other door."""

    authentication_classes = ()
    permission_classes = ()
    keeps_answers = False

    _LOGIN = Body({"username": string(1, 150), "password": string(1, 4096, redact=True)})

    @operation("session.get", answer=SessionSerializer, query=NoQuery, public=True)
    def get(self, request: Request) -> Response:
        """Say who is logged in, and what to send as CSRF token."""
        NoQuery().read(request)
        return self._shown(request)

    @operation("session.logIn", answer=SessionSerializer, body=_LOGIN, once_only=False, public=True)
    def post(self, request: Request) -> Response:
        """Log in with user name and password; the answer sets the cookie."""
        BySession().enforce_csrf(request)
        body = self._LOGIN.read(request)
        user = logins.log_in(body["username"], body["password"], remote_ip=from_headers(request.META))
        login(request._request, user)
        return self._shown(request)

    @operation("session.logOut", body=NOTHING, status=204, once_only=False, public=True)
    def delete(self, request: Request) -> Response:
        """Log out."""
        BySession().enforce_csrf(request)
        logout(request._request)
        return Response(status=204)

    def _shown(self, request: Request) -> Response:
        user = get_user(request._request)
        shown = {
            "user": user if user.is_authenticated else None,
            "via": "session" if user.is_authenticated else None,
            "csrfToken": get_token(request._request),
        }
        return Response(SessionSerializer(shown).data)


class Me(View):
    """Whom a request speaks for."""

    @operation("session.whoAmI", answer=SessionSerializer, query=NoQuery)
    def get(self, request: Request) -> Response:
        """Say whom the session or the token speaks for."""
        NoQuery().read(request)
        shown = {
            "user": self.user,
            "via": "token" if self.token else "session",
            "csrfToken": get_token(request._request),
        }
        return Response(SessionSerializer(shown).data)


class Workspaces(View):
    """The caller's workspaces."""

    @operation("workspaces.list", answer=PlaceSerializer, many=True, query=NoQuery)
    def get(self, request: Request) -> Response:
        """List the workspaces that the caller is a member of; for a token, the one that it is for."""
        NoQuery().read(request)
        bearer = request.auth if isinstance(request.auth, members.Bearer) else None
        rows = Membership.objects.unscoped("a person's own places").filter(user=self.user)
        if bearer is not None:
            rows = rows.filter(workspace_id=bearer.token.workspace_id)
        places = [
            _place(row.workspace, bearer.role if bearer else Role(row.role))
            for row in rows.select_related("workspace").order_by("workspace__name", "workspace_id")
        ]
        return Response({"items": PlaceSerializer(places, many=True).data})


class WorkspaceDetail(WorkspaceView):
    """One workspace."""

    needs = {"GET": Action.READ}

    @operation("workspaces.get", answer=PlaceSerializer, query=NoQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """Return a workspace and what the caller may do in it."""
        NoQuery().read(request)
        return Response(PlaceSerializer(_place(self.workspace, self.role)).data)


class Members(WorkspaceView):
    """The members of a workspace."""

    needs = {"GET": Action.READ, "POST": Action.MEMBERS}

    _NEW = Body({"username": string(1, 150), "role": string(choices=Role.values)})

    @operation("members.list", answer=MemberSerializer, page=True, query=SearchQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the members of a workspace, the newest first."""
        query = SearchQuery().read(request)
        rows = Membership.objects.select_related("user")
        if query.get("search"):
            rows = rows.filter(containing(query["search"], "user__username"))
        return Response(page_of(rows, query, lambda page: MemberSerializer(page, many=True).data))

    @operation("members.add", answer=MemberSerializer, body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Give a person who has an account a place in the workspace."""
        body = self._NEW.read(request)
        row = members.add_member(
            self.workspace.id, body["username"], Role(body["role"]), by=self.role, actor=self.actor
        )
        return Response(MemberSerializer(row).data, status=201)


class Member(WorkspaceView):
    """One member."""

    needs = {"PATCH": Action.MEMBERS, "DELETE": Action.MEMBERS}

    _ROLE = Body({"role": string(choices=Role.values)})

    @operation("members.setRole", answer=MemberSerializer, body=_ROLE)
    def patch(self, request: Request, workspace: str, member: str) -> Response:
        """Give a member another role."""
        body = self._ROLE.read(request)
        row = members.set_role(member, Role(body["role"]), by=self.role, actor=self.actor)
        return Response(MemberSerializer(row).data)

    @operation("members.remove", body=NOTHING, status=204)
    def delete(self, request: Request, workspace: str, member: str) -> Response:
        """Take a person's place in the workspace away, and their tokens of it."""
        NOTHING.read(request)
        members.remove_member(member, by=self.role, actor=self.actor)
        return Response(status=204)


class Tokens(WorkspaceView):
    """Personal tokens for a workspace."""

    needs = {"GET": Action.TOKENS, "POST": Action.TOKENS}

    _NEW = Body(
        {"name": string(1, 255), "role": string(choices=Role.values), "expiresAt": moment()},
    )

    @operation("tokens.list", answer=TokenSerializer, page=True, query=PageQuery)
    def get(self, request: Request, workspace: str) -> Response:
        """List the caller's tokens that still work; those of everybody, for who manages members."""
        query = PageQuery().read(request)
        rows = PersonalToken.objects.filter(revoked_at=None, expires_at__gt=clock.now())
        if not roles.may(self.role, Action.MEMBERS):
            rows = rows.filter(user=self.user)
        rows = rows.select_related("user")
        return Response(page_of(rows, query, lambda page: TokenSerializer(page, many=True).data))

    @operation("tokens.create", answer=NewTokenSerializer, body=_NEW, status=201)
    def post(self, request: Request, workspace: str) -> Response:
        """Make a token of the caller's own; its text is shown once."""
        body = self._NEW.read(request)
        row, plaintext = members.create_token(
            self.workspace.id,
            self.user,
            body["name"],
            Role(body["role"]),
            expires_at=clock.from_ms(body["expiresAt"]),
            by=self.role,
            actor=self.actor,
        )
        return Response({**TokenSerializer(row).data, "plaintext": plaintext}, status=201)


class Token(WorkspaceView):
    """One personal token."""

    needs = {"DELETE": Action.TOKENS}

    @operation("tokens.revoke", body=NOTHING, status=204)
    def delete(self, request: Request, workspace: str, token: str) -> Response:
        """Stop a token for good."""
        NOTHING.read(request)
        members.revoke_token(token, user=self.user, by=self.role, actor=self.actor)
        return Response(status=204)


def _place(workspace: Workspace, role: Role) -> dict[str, Any]:
    return {
        "id": workspace.id,
        "name": workspace.name,
        "slug": workspace.slug,
        "enabled": workspace.enabled,
        "suspended_at": workspace.suspended_at,
        "role": role,
        "may": sorted(action.name.lower() for action in roles.ALLOWED[role]),
        "created_at": workspace.created_at,
    }
