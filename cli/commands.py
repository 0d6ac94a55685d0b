"""The commands beside `deploy`: login, rollback, promote, ps, logs, env."""

import argparse
import getpass
import os
import sys
import time
from pathlib import Path
from typing import Any

from cli import config
from cli.client import Client
from cli.link import Link, resolve
from cli.terminal import Terminal, ago

OK, FAILED, USAGE, TIMED_OUT = 0, 1, 2, 6


def login(options: argparse.Namespace, terminal: Terminal) -> int:
    """Check a root key against the API and keep it."""
    url = (options.url or os.environ.get("UNKEY_API_URL") or config.DEFAULT_URL).rstrip("/")
    key = options.root_key or os.environ.get("UNKEY_ROOT_KEY")
    if not key:
        key = getpass.getpass("root key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
    if not key:
        terminal.error("no root key was given")
        return USAGE
    Client(url, key).call("projects.listProjects", {"limit": 1})
    file = config.save(config.Login(url=url, root_key=key))
    terminal.line(f"logged in to {url}; the key is kept in {file}")
    terminal.document({"url": url, "config": str(file)})
    return OK


def rollback(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Point the live hosts at an earlier deployment: the one named, else the one before the current."""
    target = options.deployment
    if not target:
        link = resolve(options, Path.cwd())
        target = _before_current(client, link)
        if not target:
            terminal.error(
                "there is no earlier deployment that could take over", ["`unkey ps` lists what runs"]
            )
            return FAILED
    return _switch(client, "rollback", target, options, terminal)


def promote(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Make a deployment the live one: the one named, else the newest that is ready."""
    target = options.deployment
    if not target:
        link = resolve(options, Path.cwd())
        ready = client.call("deployments.listDeployments", {**link.fields(), "status": ["ready"], "limit": 1})
        if not ready:
            terminal.error("no deployment is ready")
            return FAILED
        target = ready[0]["id"]
    return _switch(client, "promote", target, options, terminal)


def ps(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """List deployments, the current one marked."""
    link = resolve(options, Path.cwd())
    fields = link.fields() if options.env else {"project": link.project, "app": link.app}
    rows = client.call("deployments.listDeployments", {**fields, "limit": options.limit})
    if not rows:
        terminal.line("nothing has been deployed yet")
    else:
        terminal.table(
            ("", "deployment", "status", "environment", "instances", "restarts", "image", "created"),
            [
                (
                    "●" if row["isCurrent"] else "",
                    row["id"],
                    row["status"],
                    row["environment"],
                    _running(row.get("instances")),
                    str(row.get("instances", {}).get("restarts", "")),
                    row.get("docker", {}).get("image", "")[:28],
                    ago(row["createdAt"]),
                )
                for row in rows
            ],
        )
    terminal.document(rows)
    return OK


def _running(instances: dict[str, Any] | None) -> str:
    return f"{instances['running']}/{instances['total']}" if instances else ""


def logs(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Print the last lines that a deployment's instances wrote, and go on with `--follow`."""
    target = options.deployment
    if not target:
        link = resolve(options, Path.cwd())
        rows = client.call("deployments.listDeployments", {**link.fields(), "limit": 100})
        if not rows:
            terminal.error(f"nothing has been deployed to {link.environment} yet")
            return FAILED
        target = next((row["id"] for row in rows if row["isCurrent"]), rows[0]["id"])
    lines = client.call("deployments.getLogs", {"deploymentId": target, "tail": options.tail})["lines"]
    _print_lines(lines, terminal)
    terminal.document(lines)
    while options.follow:
        time.sleep(1)
        newer = client.call("deployments.getLogs", {"deploymentId": target, "tail": 1000})["lines"]
        known = {_identity(line) for line in lines}
        _print_lines([line for line in newer if _identity(line) not in known], terminal)
        lines = newer
    return OK


def env_list(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """List the variables of an environment; write-only values are not shown."""
    link = resolve(options, Path.cwd())
    rows = client.pages("environments.listEnvironmentVariables", link.fields())
    if not rows:
        terminal.line(f"{link.environment} has no variables")
    else:
        terminal.table(
            ("variable", "kind", "value"),
            [(row["key"], row["kind"], row.get("value", "(hidden)").splitlines()[0][:60]) for row in rows],
        )
    terminal.document(rows)
    return OK


def env_set(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Set variables; they take effect with the next deployment."""
    link = resolve(options, Path.cwd())
    variables: list[dict[str, str]] = []
    for assignment in options.assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            terminal.error(f"{assignment!r} is not NAME=VALUE")
            return USAGE
        variables.append(
            {"key": key, "value": value, "kind": "recoverable" if options.readable else "writeonly"}
        )
    client.call("environments.setEnvironmentVariables", {**link.fields(), "variables": variables})
    names = [variable["key"] for variable in variables]
    terminal.line(f"set {', '.join(names)} in {link.environment}; the next deployment will see it")
    terminal.document({"set": names})
    return OK


def env_rm(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Remove variables."""
    link = resolve(options, Path.cwd())
    client.call("environments.removeEnvironmentVariables", {**link.fields(), "variables": options.names})
    terminal.line(f"removed {', '.join(options.names)} from {link.environment}")
    terminal.document({"removed": options.names})
    return OK


def _before_current(client: Client, link: Link) -> str | None:
    rows = client.call("deployments.listDeployments", {**link.fields(), "status": ["ready"], "limit": 100})
    current = next((index for index, row in enumerate(rows) if row["isCurrent"]), None)
    earlier = rows[current + 1 :] if current is not None else []
    return next((row["id"] for row in earlier if "rollback" in row["availableActions"]), None)


def _switch(client: Client, verb: str, target: str, options: argparse.Namespace, terminal: Terminal) -> int:
    began = time.monotonic()
    client.call(f"deployments.{verb}Deployment", {"deploymentId": target})
    while True:
        deployment = client.call("deployments.getDeployment", {"deploymentId": target})
        app = client.call("apps.getApp", {"project": deployment["project"], "app": deployment["app"]})
        done = deployment["isCurrent"] and app["isRolledBack"] == (verb == "rollback")
        if done or time.monotonic() - began > options.timeout:
            break
        terminal.waiting(f"{verb} to {target} … {time.monotonic() - began:.1f} s")
        time.sleep(0.05)
    took = time.monotonic() - began
    terminal.document({"deploymentId": target, "current": done, "seconds": round(took, 3)})
    if not done:
        terminal.error(f"{verb} to {target} was accepted but has not happened after {options.timeout:.0f} s")
        return TIMED_OUT
    word = "rolled back to" if verb == "rollback" else "promoted"
    terminal.line(f"{terminal.paint('✓', 'green')} {word} {terminal.paint(target, 'bold')} in {took:.2f} s")
    if verb == "rollback":
        terminal.line("  new deployments will not go live until one is promoted")
    return OK


def _identity(line: dict[str, Any]) -> tuple[Any, ...]:
    return (line.get("time"), line.get("instance"), line.get("text"))


def _print_lines(lines: list[dict[str, Any]], terminal: Terminal) -> None:
    for line in lines:
        label = terminal.paint(str(line.get("instance", "")), "dim")
        terminal.line(f"{label} {line.get('text', '')}")
