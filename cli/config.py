"""Where the CLI keeps its login, and which project, app and environment a folder belongs to."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:7070"


class NotLoggedIn(Exception):
    """No root key is known."""


@dataclass(frozen=True, slots=True)
class Login:
    """Where the API is and the root key for it."""

    url: str
    root_key: str


def path() -> Path:
    """Return the file of the login: UNKEY_CONFIG, else `$XDG_CONFIG_HOME/unkey/login.json`."""
    given = os.environ.get("UNKEY_CONFIG")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "unkey" / "login.json"


def save(login: Login) -> Path:
    """Write the login, readable by its owner alone; returns the file."""
    file = path()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        json.dump({"url": login.url, "rootKey": login.root_key}, out, indent=2)
    draft.replace(file)
    return file


def load(url: str | None, root_key: str | None) -> Login:
    """Return the login: what the command line says, else the environment, else the saved file.

    Raises:
        NotLoggedIn: none of them has a root key.
    """
    saved: dict[str, str] = {}
    file = path()
    if file.is_file():
        try:
            saved = json.loads(file.read_text())
        except ValueError:
            saved = {"": ""}
        if not isinstance(saved, dict) or not set(saved) <= {"url", "rootKey"}:
            raise NotLoggedIn(f"{file} is not what `unkey login` writes: run it again")
    key = root_key or os.environ.get("UNKEY_ROOT_KEY") or saved.get("rootKey")
    if not key:
        raise NotLoggedIn("no root key: run `unkey login`, or set UNKEY_ROOT_KEY")
    address = url or os.environ.get("UNKEY_API_URL") or saved.get("url") or DEFAULT_URL
    return Login(url=address.rstrip("/"), root_key=key)
