"""Which project, app and environment a command is about."""

import argparse
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

FILE = "unkey.json"


class BadLink(Exception):
    """`unkey.json` cannot be read, or no project is named."""


@dataclass(frozen=True, slots=True)
class Link:
    """Slugs or ids of a project, its app and an environment."""

    project: str
    app: str
    environment: str

    def fields(self) -> dict[str, str]:
        """Return them as request fields."""
        return {"project": self.project, "app": self.app, "environment": self.environment}


def resolve(options: argparse.Namespace, folder: Path) -> Link:
    """Return the link: options, else UNKEY_PROJECT and UNKEY_APP, else `unkey.json`, else the folder's name.

    Raises:
        BadLink: `unkey.json` is not an object of strings, or the folder's name makes no slug.
    """
    named: dict[str, str] = {}
    file = folder / FILE
    if file.is_file():
        try:
            named = json.loads(file.read_text())
        except ValueError as error:
            raise BadLink(f"{file} is not JSON: {error}") from None
        if not isinstance(named, dict) or not all(isinstance(value, str) for value in named.values()):
            raise BadLink(
                f'{file} must be an object of texts, such as {{"project": "hello", "app": "default"}}'
            )
    project = (
        options.project
        or os.environ.get("UNKEY_PROJECT")
        or named.get("project")
        or slug(folder.resolve().name)
    )
    if len(project) < 3:
        raise BadLink("name the project: --project NAME (at least 3 characters)")
    return Link(
        project=project,
        app=options.app or os.environ.get("UNKEY_APP") or named.get("app") or "default",
        environment=options.env or named.get("environment") or "production",
    )


def slug(text: str) -> str:
    """Return a text in lower case with everything but letters and digits as single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
