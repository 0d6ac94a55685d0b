"""Finds the ASGI or WSGI application of a Python source by reading it, never by importing it."""

import ast
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

Protocol = Literal["asgi", "wsgi"]

NAMES = ("app", "application")
# Import roots, also the names of the packages that bring them; the longest match decides.
FRAMEWORKS: dict[str, Protocol] = {
    "fastapi": "asgi",
    "starlette": "asgi",
    "litestar": "asgi",
    "quart": "asgi",
    "sanic": "asgi",
    "blacksheep": "asgi",
    "channels": "asgi",
    "django.core.asgi": "asgi",
    "django.core.wsgi": "wsgi",
    "falcon": "wsgi",
    "falcon.asgi": "asgi",
    "flask": "wsgi",
    "bottle": "wsgi",
    "pyramid": "wsgi",
    "connexion": "asgi",
}


@dataclass(frozen=True, slots=True)
class WebApp:
    """An application: the name it has in its module, and how servers speak to it."""

    name: str
    protocol: Protocol


def find(source: bytes, packages: Collection[str]) -> WebApp | None:
    """Return the application that a module defines at its top level.

    Args:
        source: text of the module.
        packages: names of the packages that the project depends on; they decide where the module
            itself does not say which framework made its application.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    imports: dict[str, str] = {}
    found: dict[str, Protocol] = {}
    for statement in _top_level(module.body):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports |= _imported(statement)
        for name, protocol in _bound(statement, imports, packages):
            if protocol is None:
                found.pop(name, None)
            else:
                found[name] = protocol
    return next((WebApp(name, found[name]) for name in NAMES if name in found), None)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        match statement:
            case ast.If():
                yield from _top_level([*statement.body, *statement.orelse])
            case ast.Try():
                handlers = [inner for handler in statement.handlers for inner in handler.body]
                yield from _top_level([*statement.body, *handlers, *statement.orelse])
            case ast.With():
                yield from _top_level(statement.body)


def _imported(statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Return local name to dotted origin."""
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
            for alias in statement.names
        }
    module = "." * statement.level + (statement.module or "")
    return {alias.asname or alias.name: f"{module}.{alias.name}" for alias in statement.names}


def _bound(
    statement: ast.stmt, imports: dict[str, str], packages: Collection[str]
) -> Iterator[tuple[str, Protocol | None]]:
    """Yield each of NAMES that a statement binds, with the protocol that it then speaks."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() if statement.name in NAMES:
            yield statement.name, _of_function(statement)
        case ast.Assign():
            for target in statement.targets:
                if isinstance(target, ast.Name) and target.id in NAMES:
                    yield target.id, _of_value(statement.value, imports, packages)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name in NAMES:
            yield name, _of_value(value, imports, packages)
        case ast.ImportFrom():
            for alias in statement.names:
                name = alias.asname or alias.name
                if name in NAMES:
                    yield name, _of_project(imports, packages)


def _of_function(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Protocol | None:
    count = len(function.args.posonlyargs) + len(function.args.args)
    if count == 3:
        return "asgi"
    return "wsgi" if count == 2 and isinstance(function, ast.FunctionDef) else None


def _of_value(value: ast.expr, imports: dict[str, str], packages: Collection[str]) -> Protocol | None:
    if isinstance(value, ast.Constant | ast.List | ast.Dict | ast.Set | ast.Tuple | ast.JoinedStr):
        return None
    if isinstance(value, ast.Call):
        origin = _origin(value.func, imports)
        known = _of_framework(origin)
        if known:
            return known
        last = origin.rpartition(".")[2]
        if last == "make_wsgi_app":
            return "wsgi"
    return _of_project(imports, packages)


def _origin(function: ast.expr, imports: dict[str, str]) -> str:
    """Return the dotted path that a called name comes from: `fastapi.FastAPI`."""
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return ".".join(reversed(parts))
    return ".".join([imports.get(function.id, function.id), *reversed(parts)])


def _of_framework(origin: str) -> Protocol | None:
    parts = origin.split(".")
    for length in range(len(parts), 0, -1):
        protocol = FRAMEWORKS.get(".".join(parts[:length]))
        if protocol:
            return protocol
    return None


def _of_project(imports: dict[str, str], packages: Collection[str]) -> Protocol | None:
    """Return what the module's imports, else the project's dependencies, agree on."""
    for names in (imports.values(), packages):
        kinds = {kind for name in names if (kind := _of_framework(name))}
        if len(kinds) == 1:
            return kinds.pop()
    return None
