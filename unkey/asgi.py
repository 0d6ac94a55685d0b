"""ASGI entry point of feed: the agents' watch stream, live progress, health and metrics; nothing else."""

import os

from django.core.asgi import get_asgi_application

from unkey.complaints import in_one_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")

with in_one_line():
    _django = get_asgi_application()

from apps.cluster import feed  # models can be imported only now
from apps.console import live

_watch = feed.Feed()
_live = live.Live()


async def application(scope: feed.Scope, receive: feed.Receive, send: feed.Send) -> None:
    """Serve one connection."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] != "http":
        return
    elif scope["path"] == "/internal/watch":
        await _watch(scope, receive, send)
    elif _live.serves(scope["path"]):
        await _live(scope, receive, send)
    elif scope["path"].startswith("/health/") or scope["path"] == "/metrics":
        await _django(scope, receive, send)
    else:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: feed.Receive, send: feed.Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
