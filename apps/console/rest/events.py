"""Tickets for live progress, which feed serves."""

from typing import Any
from urllib.parse import quote

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.console import tickets
from apps.console.rest.access import WorkspaceView
from apps.console.rest.describing import Body, Moment, operation
from apps.deployments import queries as deployments
from apps.workspaces.roles import Action
from unkey import clock
from unkey.env import env
from unkey.rpc.schema import boolean, handle, optional


class TicketSerializer(serializers.Serializer[Any]):
    """What opens a stream of server-sent events."""

    ticket = serializers.CharField()
    url = serializers.CharField(help_text="for an EventSource; add &lastEventId=… to resume")
    expiresAt = Moment(help_text="until when it opens streams; those that are open stay")


class Ticket(WorkspaceView):
    """A ticket."""

    needs = {"POST": Action.READ}
    keeps_answers = False

    _WANTED = Body(
        {
            "deployment": optional(handle(about="follow this one; without it, all of the workspace")),
            "logs": optional(boolean(about="its log lines as well"), default=False),
        }
    )

    @operation("events.ticket", answer=TicketSerializer, body=_WANTED, status=201, once_only=False)
    def post(self, request: Request, workspace: str) -> Response:
        """Make a ticket by which the caller can follow a deployment, or all of the workspace, for a minute."""
        body = self._WANTED.read(request)
        deployment = deployments.find(body["deployment"]).id if "deployment" in body else ""
        signed = tickets.sign(
            tickets.Ticket(
                user=self.user.pk,
                workspace=self.workspace.id,
                deployment=deployment,
                logs=bool(deployment) and body.get("logs", False),
                token=self.token.pk if self.token else "",
            )
        )
        path = f"/api/workspaces/{self.workspace.id}/events?ticket={quote(signed)}"
        shown = {
            "ticket": signed,
            "url": f"{_feed(request)}{path}",
            "expiresAt": clock.now() + tickets.LIFE,
        }
        answer = Response(TicketSerializer(shown).data, status=201)
        answer.headers["Cache-Control"] = "no-store"
        return answer


def _feed(request: Request) -> str:
    if env.CONSOLE_FEED_URL:
        return str(env.CONSOLE_FEED_URL).rstrip("/")
    host, _, port = request.get_host().rpartition(":")
    name = host if host and port.isdigit() else request.get_host()
    return f"{request.scheme}://{name}:{env.FEED_PORT}"
