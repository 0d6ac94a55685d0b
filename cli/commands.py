"""The commands beside `deploy`: login, what is done to a deployment, ps, logs, env."""

import argparse
import getpass
import os
import sys
import time
from pathlib import Path
from typing import Any

from cli import config
from cli.client import Client
from cli.deploy import follow
from cli.link import Link, resolve
from cli.terminal import Terminal, ago

OK, FAILED, USAGE, TIMED_OUT = 0, 1, 2, 6
UNDER_WAY = [
    "pending",
    "awaiting_approval",
    "starting",
    "building",
    "deploying",
    "network",
    "finalizing",
]


def login(options: argparse.Namespace, terminal: Terminal) -> int:
    """Check a root key against the API and keep it."""
    url = (options.url or os.environ.get("UNKEY_API_URL") or config.DEFAULT_URL).rstrip("/")
    key = options.root_key or os.environ.get("UNKEY_ROOT_KEY")
    if not key:
        key = getpass.getpass("root key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
    if not key:
        terminal.error(
            "no root key was given", ["name one with --root-key or UNKEY_ROOT_KEY, or type it when asked"]
        )
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
            terminal.error("no deployment is ready", ["`unkey ps` lists all; `unkey deploy` makes one"])
            return FAILED
        target = ready[0]["id"]
    return _switch(client, "promote", target, options, terminal)


def stop(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Stop a preview for good, also one that sleeps: the one named, else the newest that can be stopped."""
    target = _target(client, options, terminal, ["ready", "stopped"], "can be stopped", "stop")
    if not target:
        return FAILED
    client.call("deployments.stopDeployment", {"deploymentId": target})
    return _await(client, "stop", target, "stopped", options, terminal)


def start(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Start a stopped preview again: the one named, else the newest that is stopped."""
    target = _target(client, options, terminal, ["stopped"], "can be started", "start")
    if not target:
        return FAILED
    client.call("deployments.startDeployment", {"deploymentId": target})
    return _await(client, "start", target, "ready", options, terminal)


def cancel(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """End a deployment that is not ready yet: the one named, else the newest that is under way."""
    target = _target(client, options, terminal, UNDER_WAY, "is under way")
    if not target:
        return FAILED
    client.call("deployments.cancelDeployment", {"deploymentId": target})
    status = client.ask("deployments.getDeployment", {"deploymentId": target})["status"]
    terminal.document({"deploymentId": target, "status": status})
    if status in ("cancelled", "stopped"):  # one that was being woken sleeps again
        terminal.line(f"{terminal.paint('✓', 'green')} {target} is {status}")
        return OK
    terminal.error(f"{target} had ended before: it is {status}", ["`unkey ps` lists all deployments"])
    return FAILED


def approve(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Let a deployment begin that awaits approval: the one named, else the newest; and show how it goes."""
    target = _target(client, options, terminal, ["awaiting_approval"], "awaits approval")
    if not target:
        return FAILED
    began = time.monotonic()
    client.call("deployments.approveDeployment", {"deploymentId": target})
    return _follow(client, target, began, options, terminal)


def redeploy(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Deploy what was deployed once more, with today's settings: the one named, else the newest ready one."""
    options.env = options.env or ("" if options.deployment else resolve(options, Path.cwd()).environment)
    target = _target(client, options, terminal, ["ready"], "is ready")
    if not target:
        return FAILED
    began = time.monotonic()
    asked = {"deploymentId": target, "force": options.force}
    made = client.call("deployments.redeployDeployment", asked)["deploymentId"]
    terminal.line(f"  {terminal.paint('✓', 'green')} deployment {terminal.paint(made, 'bold')} of {target}")
    return _follow(client, made, began, options, terminal)


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
                    "asleep" if row.get("asleepSince") and row["status"] == "stopped" else row["status"],
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
            terminal.error(f"nothing has been deployed to {link.environment} yet", ["`unkey deploy` does it"])
            return FAILED
        target = next((row["id"] for row in rows if row["isCurrent"]), rows[0]["id"])
    answer = client.call("deployments.getLogs", {"deploymentId": target, "tail": options.tail})
    lines = answer["lines"]
    _print_lines(lines, terminal)
    if answer.get("note"):
        terminal.note(answer["note"])
    elif not lines:
        terminal.note(f"{target} has written nothing that is still kept")
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
            terminal.error(f"{assignment!r} is not NAME=VALUE", ["write for example GREETING=hello"])
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
    # What was replaced half an hour ago sleeps: it is started again.
    asked = {**link.fields(), "status": ["ready", "stopped"], "limit": 100}
    rows = client.call("deployments.listDeployments", asked)
    current = next((index for index, row in enumerate(rows) if row["isCurrent"]), None)
    earlier = rows[current + 1 :] if current is not None else []
    offered = [row["id"] for row in earlier if "rollback" in row["availableActions"]]
    # Where none is offered the API says why.
    return next(iter([*offered, *(row["id"] for row in earlier)]), None)


def _target(
    client: Client,
    options: argparse.Namespace,
    terminal: Terminal,
    statuses: list[str],
    what: str,
    action: str = "",
) -> str | None:
    """Return the deployment that was named, else the newest with one of these statuses.

    Args:
        what: what there is none of otherwise, for people.
        action: of those only one that this may be done to.
    """
    if options.deployment:
        return str(options.deployment)
    link = resolve(options, Path.cwd())
    fields = link.fields() if options.env else {"project": link.project, "app": link.app}
    rows = client.call("deployments.listDeployments", {**fields, "status": statuses, "limit": 100})
    for row in rows:
        if not action or action in row["availableActions"]:
            return str(row["id"])
    terminal.error(f"nothing of {link.project} / {link.app} {what}", ["`unkey ps` lists all deployments"])
    return None


def _follow(
    client: Client, target: str, began: float, options: argparse.Namespace, terminal: Terminal
) -> int:
    if not options.wait:
        terminal.document({"deploymentId": target, "status": "pending"})
        return OK
    return follow(client, target, options.timeout, terminal, began)


def _await(
    client: Client, verb: str, target: str, wanted: str, options: argparse.Namespace, terminal: Terminal
) -> int:
    """Wait until a deployment has the status that was asked for, or cannot get it."""
    began = time.monotonic()
    while True:
        status = client.ask("deployments.getDeployment", {"deploymentId": target})["status"]
        why = "" if status == wanted else _refusal(client, verb, target)
        if status == wanted or why or time.monotonic() - began > options.timeout:
            break
        terminal.waiting(f"{verb} {target} … {time.monotonic() - began:.1f} s")
        time.sleep(0.1)
    took = round(time.monotonic() - began, 3)
    terminal.document({"deploymentId": target, "status": status, "seconds": took} | _error(why))
    if status == wanted:
        terminal.line(f"{terminal.paint('✓', 'green')} {terminal.paint(target, 'bold')} is {status}")
        return OK
    if why:
        terminal.error(f"{verb} of {target} failed", why.splitlines())
        return FAILED
    terminal.error(
        f"{verb} of {target} was accepted but has not happened after {options.timeout:.0f} s",
        _obstacle(client, target),
    )
    return TIMED_OUT


def _refusal(client: Client, verb: str, target: str) -> str:
    """Return why the last request of this kind failed; empty while it has not."""
    last = client.ask("deployments.getLastRequest", {"deploymentId": target})
    if last.get("kind") != verb or last.get("status") != "failed":
        return ""
    return str(last.get("message") or last.get("code") or "it failed")


def _obstacle(client: Client, target: str) -> list[str]:
    """Return what keeps a request from happening, as far as the platform knows."""
    said = client.ask("deployments.getLastRequest", {"deploymentId": target}).get("message")
    return [str(said)] if said else []


def _error(why: str) -> dict[str, Any]:
    return {"error": {"message": why}} if why else {}


def _switch(client: Client, verb: str, target: str, options: argparse.Namespace, terminal: Terminal) -> int:
    began = time.monotonic()
    client.call(f"deployments.{verb}Deployment", {"deploymentId": target})
    while True:
        deployment = client.ask("deployments.getDeployment", {"deploymentId": target})
        app = client.ask("apps.getApp", {"project": deployment["project"], "app": deployment["app"]})
        done = deployment["isCurrent"] and app["isRolledBack"] == (verb == "rollback")
        why = "" if done else _refusal(client, verb, target)
        if done or why or time.monotonic() - began > options.timeout:
            break
        terminal.waiting(f"{verb} to {target} … {time.monotonic() - began:.1f} s")
        time.sleep(0.05)
    took = time.monotonic() - began
    terminal.document({"deploymentId": target, "current": done, "seconds": round(took, 3)} | _error(why))
    if why:
        terminal.error(f"{verb} to {target} failed; what was live still is", why.splitlines())
        return FAILED
    if not done:
        terminal.error(
            f"{verb} to {target} was accepted but has not happened after {options.timeout:.0f} s",
            _obstacle(client, target),
        )
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
