"""uvicorn's HTTP protocol, with a way to end a connection whose peer takes nothing any more.

Closing such a connection waits for what is still to be sent, for as long as the peer's kernel answers.
`uvicorn --http unkey.streaming:Protocol` puts into each scope's extensions `unkey.abort: {"abort": function}`.
"""

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """Tells applications how to drop their connection with all that waits to be sent."""

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        scope = cast(dict[str, Any], self.scope)
        scope.setdefault("extensions", {})["unkey.abort"] = {"abort": self.transport.abort}
