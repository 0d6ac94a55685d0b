"""Finds out what a source says to run: its Procfile, the environment's command, or what is in it.

    plan(file, command=[], root_directory=".")
    # Plan(kind="python", command=["/bin/sh", "-c", "exec python -m uvicorn …"], install=[…])

Reads the archive only; nothing of it is run or imported here.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal

from apps.builds import webapps
from apps.builds.services import object_key
from unkey import errors, objects, snapshots
from unkey.env import env
from unkey.snapshots import Kind

READ_MAX = 256 * 1024
MODULES_MAX = 200
MODULES = ("main", "app", "asgi", "wsgi", "application", "server", "api")
STATIC_FOLDERS = (".", "public", "dist", "site")
SERVERS: dict[webapps.Protocol, str] = {"asgi": "uvicorn", "wsgi": "gunicorn"}

_PROCESS = re.compile(r"([A-Za-z0-9_-]+)[ \t]*:[ \t]*(.*)")
_REQUIREMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_INCLUDE = re.compile(r"(?:-r|--requirement)[ =]?[ \t]*(\S+)")
_SEPARATORS = re.compile(r"[-_.]+")

PlanKind = Literal["procfile", "command", "python", "node", "static"]


class NothingToRun(Exception):
    """The source does not say what to run, or says it wrongly; the message names what was looked for."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start a source.

    Args:
        kind: where the command comes from.
        command: arguments, run in the root directory with PORT in the environment; `python` is that of
            the instance's own environment, and of the platform for kind `static`.
        install: arguments run once for a source before its first start, or None.
    """

    kind: PlanKind
    command: list[str]
    install: list[str] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the plan as deployments keep it."""
        return asdict(self)


def plan_snapshot(workspace_id: str, image: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of a stored snapshot as JSON.

    Args:
        workspace_id: whose.
        image: `snapshot@sha256:<digest>`.
        settings: `command` and `rootDirectory` as a deployment froze them.

    Raises:
        NothingToRun: as `plan`.
        errors.InvalidSnapshot: `image` is no such reference.
        errors.SnapshotNotFound: the object store does not have it.
    """
    digest = snapshots.parse_reference(image)
    try:
        file = objects.open_store(env.OBJECT_STORE_URL).get(object_key(workspace_id, digest))
    except objects.ObjectNotFound:
        raise errors.SnapshotNotFound(f"The object store does not hold {image}.") from None
    with file:
        found = plan(file, command=settings["command"], root_directory=settings["rootDirectory"])
    return found.as_json()


def plan(file: BinaryIO, *, command: Sequence[str], root_directory: str) -> Plan:
    """Return how to start the source in an archive.

    Args:
        file: the archive, seekable.
        command: what the environment's settings say to run; empty: nothing.
        root_directory: folder of the program inside the source.

    Raises:
        NothingToRun: nothing was found, or a file that says it is malformed.
        errors.InvalidSnapshot: the archive is broken.
    """
    source = _Source(file, root_directory)
    line = source.procfile()
    if line is not None:
        return Plan("procfile", ["/bin/sh", "-c", line], source.install())
    if command:
        return Plan("command", list(command), source.install())
    found = source.python() or source.node() or source.static()
    if found is None:
        raise NothingToRun(source.missing())
    return found


class _Source:
    """The files of an archive that say what to run."""

    def __init__(self, file: BinaryIO, root_directory: str) -> None:
        root = PurePosixPath(root_directory)
        if root.is_absolute() or ".." in root.parts:
            raise NothingToRun(f"The root directory '{root_directory}' is not inside the source.")
        self._prefix = "" if str(root) == "." else f"{root}/"
        file.seek(0)
        members = snapshots.inspect(file).members
        if self._prefix and not any(member.name.startswith(self._prefix) for member in members):
            raise NothingToRun(f"The source has no folder '{root}', which is the root directory.")
        self._names = {
            member.name.removeprefix(self._prefix)
            for member in members
            if member.kind is not Kind.FOLDER and member.name.startswith(self._prefix)
        }
        self._modules = self._candidates()
        wanted = {"Procfile", "pyproject.toml", "package.json", *self._modules}
        wanted |= {name for name in self._names if name.endswith(".txt") and name.count("/") <= 1}
        read = snapshots.read_members(
            file, [self._prefix + name for name in wanted & self._names], limit=READ_MAX + 1
        )
        self._contents = {
            name.removeprefix(self._prefix): content
            for name, content in read.items()
            if len(content) <= READ_MAX
        }

    def procfile(self) -> str | None:
        """Return the command line of `web`, as it goes to /bin/sh; None where there is none."""
        text = self._text("Procfile")
        if text is None:
            return None
        web: str | None = None
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            match = _PROCESS.fullmatch(line)
            if match is None:
                raise NothingToRun(f"Procfile line {number} is not of the form 'name: command'.")
            name, command = match.groups()
            if name != "web":
                continue
            if web is not None:
                raise NothingToRun(f"Procfile line {number} says 'web:' a second time.")
            if not command or command.startswith("#") or "\0" in command:
                raise NothingToRun(f"Procfile line {number} has no command after 'web:'.")
            web = command
        return web

    def install(self) -> list[str] | None:
        """Return what installs the source's dependencies, whatever its command."""
        return self._install_python() or self._install_node()

    def python(self) -> Plan | None:
        """Return how to serve an ASGI or WSGI application."""
        if not {"requirements.txt", "pyproject.toml"} & self._names:
            return None
        packages = self._packages()
        for name in self._modules:
            found = webapps.find(self._contents.get(name, b""), packages)
            if found is None:
                continue
            module = _dotted(name)
            target = f"{module}:{found.name}"
            options = "--app-dir src" if name.startswith("src/") else ""
            if found.protocol == "asgi":
                line = f'exec python -m uvicorn {target} --host 127.0.0.1 --port "$PORT" {options}'
            else:
                options = options.replace("--app-dir", "--chdir")
                line = f'exec python -m gunicorn {target} --bind "127.0.0.1:$PORT" {options}'
            return Plan(
                "python", ["/bin/sh", "-c", line.rstrip()], self._install_python(SERVERS[found.protocol])
            )
        return None

    def node(self) -> Plan | None:
        """Return how to start a Node.js program."""
        scripts = self._package_json().get("scripts")
        start = scripts.get("start") if isinstance(scripts, dict) else None
        if not isinstance(start, str) or not start.strip():
            return None
        return Plan("node", ["npm", "start"], self._install_node())

    def static(self) -> Plan | None:
        """Return how to serve a folder of files."""
        for folder in STATIC_FOLDERS:
            if str(PurePosixPath(folder, "index.html")) in self._names:
                return Plan("static", ["python", "-m", "agent.static", folder])
        return None

    def missing(self) -> str:
        """Return what was looked for, and what there is of it."""
        where = f"'{self._prefix.rstrip('/')}'" if self._prefix else "the source"
        modules = ", ".join(f"{module}.py" for module in MODULES)
        python = (
            f"an ASGI or WSGI application named {' or '.join(webapps.NAMES)} in {modules}, "
            "at the top or in a package"
        )
        if not {"requirements.txt", "pyproject.toml"} & self._names:
            python = f"requirements.txt or pyproject.toml with {python}"
        return (
            f"Nothing to run was found in {where}. Looked for: a Procfile with a 'web:' line; "
            f"the environment's command; {python}; package.json with a start script; "
            f"index.html in {', '.join('the root' if name == '.' else name for name in STATIC_FOLDERS)}."
        )

    def _text(self, name: str) -> str | None:
        if name not in self._names:
            return None
        content = self._contents.get(name)
        if content is None:
            raise NothingToRun(f"{name} is larger than {READ_MAX // 1024} KiB.")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise NothingToRun(f"{name} is not UTF-8 text.") from None

    def _candidates(self) -> list[str]:
        """Return the modules that may define an application, the likeliest first."""
        ranked: list[tuple[int, int, str]] = []
        for name in self._names:
            path = PurePosixPath(name.removeprefix("src/"))
            depth = len(path.parts) - 1
            if path.suffix != ".py" or depth > 1 or not all(map(str.isidentifier, _dotted(name).split("."))):
                continue
            if path.stem in MODULES:
                ranked.append((depth, MODULES.index(path.stem), name))
            elif path.stem == "__init__" and depth:
                ranked.append((depth, len(MODULES), name))
        return [name for _, _, name in sorted(ranked)[:MODULES_MAX]]

    def _packages(self) -> set[str]:
        return {_normal(name) for name in self._requirements()}

    def _requirements(self) -> list[str]:
        if "requirements.txt" in self._names:
            return self._requirement_lines("requirements.txt", set())
        return self._project_dependencies() or []

    def _requirement_lines(self, name: str, seen: set[str]) -> list[str]:
        if name in seen or name not in self._names:
            return []
        seen.add(name)
        found: list[str] = []
        for raw in (self._text(name) or "").splitlines():
            line = raw.strip()
            include = _INCLUDE.match(line)
            if include:
                inner = PurePosixPath(PurePosixPath(name).parent, include[1])
                found += self._requirement_lines(str(inner), seen)
            elif match := _REQUIREMENT.match(line):
                found.append(match[0])
        return found

    def _project_dependencies(self) -> list[str] | None:
        """Return the requirements of pyproject.toml, or None where only its build back end knows them."""
        text = self._text("pyproject.toml")
        if text is None:
            return []
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise NothingToRun(f"pyproject.toml is not valid TOML: {error}") from None
        project = document.get("project")
        if not isinstance(project, dict):
            tools = document.get("tool")
            return None if isinstance(tools, dict) and "poetry" in tools else []
        dynamic = project.get("dynamic")
        if isinstance(dynamic, list) and "dependencies" in dynamic:
            return None
        listed = project.get("dependencies", [])
        if not isinstance(listed, list) or not all(
            isinstance(item, str) and _REQUIREMENT.match(item) for item in listed
        ):
            raise NothingToRun("project.dependencies in pyproject.toml is not a list of requirements.")
        return listed

    def _install_python(self, server: str | None = None) -> list[str] | None:
        """Return what installs the requirements, and a server if it is not among them."""
        what: list[str]
        if "requirements.txt" in self._names:
            listed = self._requirements()
            what = ["-r", "requirements.txt"] if listed else []
        elif "pyproject.toml" in self._names:
            dependencies = self._project_dependencies()
            what = ["."] if dependencies is None else list(dependencies)
        else:
            return None
        if server and server not in self._packages():
            what.append(server)
        if not what:
            return None
        return ["python", "-m", "pip", "install", *what]

    def _package_json(self) -> dict[str, Any]:
        text = self._text("package.json")
        if text is None:
            return {}
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NothingToRun(f"package.json is not valid JSON: {error}") from None
        return document if isinstance(document, dict) else {}

    def _install_node(self) -> list[str] | None:
        if not self._package_json().get("dependencies"):
            return None
        return ["npm", "ci" if "package-lock.json" in self._names else "install", "--omit=dev"]


def _normal(requirement: str) -> str:
    """Return the normalised name of a requirement (PEP 503)."""
    match = _REQUIREMENT.match(requirement)
    return _SEPARATORS.sub("-", match[0]).lower() if match else ""


def _dotted(name: str) -> str:
    """Return the module that a file is: `src/shop/main.py` is `shop.main`."""
    path = name.removesuffix(".py").removeprefix("src/").removesuffix("/__init__")
    return path.replace("/", ".")
