"""`unkey spec`, `unkey diff` and `unkey settings`: what programs promise, and whether they keep it."""

import argparse
import json
from pathlib import Path
from typing import Any

from cli.client import Client
from cli.link import resolve
from cli.terminal import Terminal

OK, FAILED, USAGE = 0, 1, 2
_LEVELS = {"breaking": 3, "warning": 2, "any": 1}


def spec(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Print the OpenAPI document that a deployment served: the one named, else the live one."""
    target = options.deployment
    if not target:
        live, _ = _live_and_newest(client, options)
        if not live:
            terminal.error("nothing is live yet", ["`unkey ps` lists what runs"])
            return FAILED
        target = live
    found = client.call("deployments.getOpenapiSpec", {"deploymentId": target})
    if options.output:
        Path(options.output).write_text(found["content"])
        terminal.line(f"{found['path']} of {target} is in {options.output}")
    else:
        terminal.line(found["content"].rstrip("\n"))
    terminal.document(found)
    return OK


def diff(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Compare the OpenAPI documents of two deployments; the exit status tells scripts what it found."""
    old, new = options.old, options.new
    if not old or not new:
        live, newest = _live_and_newest(client, options)
        old, new = (live, old) if old else (live, newest)
        if not old or not new or old == new:
            terminal.error("there are no two deployments to compare", ["name them: `unkey diff OLD NEW`"])
            return FAILED
    wanted = "json" if options.json else options.format
    body: dict[str, Any] = {"oldDeploymentId": old, "newDeploymentId": new}
    if wanted != "json":
        body["format"] = wanted
    found = client.call("deployments.getOpenapiDiff", body)
    report = found.pop("report", None)
    if report is not None:
        terminal.line(report.rstrip("\n"))
    elif not options.json:
        terminal.line(json.dumps(found, indent=2))
    terminal.document(found)
    worst = max((change["level"] for change in found["changes"]), default=0)
    return FAILED if options.fail_on and worst >= _LEVELS[options.fail_on] else OK


def settings(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Show whether an environment refuses breaking changes, or change it."""
    link = resolve(options, Path.cwd())
    if options.refuse is not None:
        client.call("environments.updateSettings", {**link.fields(), "refuseBreakingChanges": options.refuse})
    shown = client.call("environments.getEnvironment", link.fields())
    refuses = shown.get("refuseBreakingChanges", False)
    verb = "refuses" if refuses else "allows"
    terminal.line(f"{link.environment} {verb} breaking changes of the API that is live")
    terminal.document({"environment": link.environment, "refuseBreakingChanges": refuses})
    return OK


def _live_and_newest(client: Client, options: argparse.Namespace) -> tuple[str | None, str | None]:
    link = resolve(options, Path.cwd())
    rows = client.call("deployments.listDeployments", {**link.fields(), "status": ["ready"], "limit": 100})
    live = next((row["id"] for row in rows if row["isCurrent"]), None)
    return live, rows[0]["id"] if rows else None
