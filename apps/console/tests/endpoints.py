"""Every endpoint of `/api/`, found from the resolver, with names to fill its address by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from django.urls import URLPattern

from apps.console.rest.access import View, WorkspaceView
from apps.console.rest.urls import api

METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Endpoint:
    """A method of a view.

    Args:
        method: in capitals.
        pattern: the route's address as it is declared, below `/api/`.
        names: what the address has to be filled with.
        view: who answers.
    """

    method: str
    pattern: str
    names: tuple[str, ...]
    view: type[View]

    def __str__(self) -> str:
        return f"{self.method} {self.pattern}"

    @property
    def in_workspace(self) -> bool:
        """Whether it belongs to a workspace."""
        return issubclass(self.view, WorkspaceView)

    def address(self, values: Mapping[str, str]) -> str:
        """Return the address for these values; a name without a value is a mistake of the test."""
        path = self.pattern
        for name in self.names:
            path = path.replace(f"<str:{name}>", values[name])
        return f"/api/{path}"


def endpoints() -> Iterator[Endpoint]:
    """Yield every method of every view."""
    for pattern in api:
        assert isinstance(pattern, URLPattern)
        view = pattern.callback.cls  # type: ignore[attr-defined]
        for method in METHODS:
            if hasattr(view, method):
                names = tuple(pattern.pattern.converters)
                yield Endpoint(method.upper(), str(pattern.pattern), names, view)
