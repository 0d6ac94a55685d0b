"""`unkey deploy`: packs a folder, uploads it, deploys it, and shows how it goes."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from cli.client import Client, Refused, Unreachable
from cli.link import Link, resolve, slug
from cli.terminal import Terminal, size

POLL_SECONDS = 0.15
ROUTED_SECONDS = 5.0
FINISHED = {"ready", "failed", "skipped", "stopped", "superseded", "cancelled"}
OK, FAILED, TIMED_OUT, INTERRUPTED = 0, 1, 6, 130

_LOOK = "`unkey ps` shows how it went"


def deploy(client: Client, options: argparse.Namespace, terminal: Terminal) -> int:
    """Deploy a folder; returns the exit status: 0 ready (or accepted), 1 failed, 6 not finished in time, 130 interrupted."""
    from unkey import snapshots

    folder = Path(options.folder)
    if not folder.is_dir():
        terminal.error(f"{folder} is not a folder", ["name the folder that holds the source"])
        return 2
    link = resolve(options, folder)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="unkey-deploy-") as scratch:
        archive = Path(scratch) / "source.tar.gz"
        terminal.waiting(f"packing {folder}")
        with archive.open("wb") as out:
            packed = snapshots.pack(folder, out)
        terminal.line(
            f"  {terminal.paint('✓', 'green')} packed {packed.files} files, {size(packed.size)}  "
            + terminal.paint(f"sha256:{packed.digest[:12]}", "dim")
        )
        _make_missing(client, link, terminal)
        terminal.waiting("uploading")
        image = client.upload("snapshots.createSnapshot", archive, packed.digest)["image"]
    made = client.call("deployments.createDeployment", {**link.fields(), "image": {"dockerImage": image}})
    identifier = made["deploymentId"]
    where = f"{link.project} / {link.app} / {link.environment}"
    terminal.line(
        f"  {terminal.paint('✓', 'green')} deployment {terminal.paint(identifier, 'bold')}  {terminal.paint(where, 'dim')}"
    )
    if not options.wait:
        terminal.document({"deploymentId": identifier, "image": image, "status": "pending"})
        return OK
    return follow(client, identifier, options.timeout, terminal, began, image)


def follow(
    client: Client, identifier: str, timeout: float, terminal: Terminal, began: float, image: str = ""
) -> int:
    """Show a deployment's steps until it has ended; returns the exit status.

    The deployment does not depend on who watches it: Ctrl-C and an API that is away end the watching.
    """
    try:
        return _follow(client, identifier, timeout, terminal, began, image)
    except KeyboardInterrupt:
        terminal.error(f"interrupted; {identifier} goes on without us", [_LOOK])
        terminal.document({"deploymentId": identifier, "error": "interrupted", "exitStatus": INTERRUPTED})
        return INTERRUPTED
    except Unreachable as error:
        raise Unreachable(f"{error}; {identifier} goes on without us") from None


def _follow(
    client: Client, identifier: str, timeout: float, terminal: Terminal, began: float, image: str
) -> int:
    shown: set[str] = set()
    queued = ""
    ready_at: float | None = None
    while True:
        deployment = client.ask("deployments.getDeployment", {"deploymentId": identifier})
        progress = client.ask("deployments.listSteps", {"deploymentId": identifier})
        for step in progress["steps"]:
            if step.get("endedAt") and step["step"] not in shown:
                shown.add(step["step"])
                _show(step, terminal)
        waits = _waits(progress)
        if waits and waits != queued:
            queued = waits
            terminal.line(f"  {terminal.paint('…', 'yellow')} {waits}")
        if deployment["status"] == "ready" and ready_at is None:
            ready_at = time.monotonic()
        if deployment["status"] in FINISHED and (
            ready_at is None or _is_routed(progress) or time.monotonic() - ready_at > ROUTED_SECONDS
        ):
            break
        if time.monotonic() - began > timeout:
            said = (
                f"{identifier} is still {deployment['status']} after {timeout:.0f} s; it goes on without us"
            )
            terminal.error(said, [*([waits] if waits else []), _LOOK])
            terminal.document({"deploymentId": identifier, "status": deployment["status"]})
            return TIMED_OUT
        terminal.waiting(f"{waits or deployment['status']} … {time.monotonic() - began:.1f} s")
        time.sleep(POLL_SECONDS)
    took = time.monotonic() - began
    result: dict[str, Any] = {
        "deploymentId": identifier,
        "image": image or deployment.get("docker", {}).get("image", ""),
        "status": deployment["status"],
        "isCurrent": deployment["isCurrent"],
        "domains": deployment.get("domains", []),
        "urls": progress["urls"],
        "seconds": round(took, 3),
    }
    if deployment["status"] == "ready":
        terminal.line(f"\n  {terminal.paint('ready', 'green', 'bold')} in {took:.1f} s")
        for url in progress["urls"]:
            terminal.line(f"  {terminal.paint(url, 'cyan')}")
        if deployment.get("objection"):
            result["objection"] = deployment["objection"]
            terminal.error(f"{identifier} is ready but not live", [deployment["objection"]])
        terminal.document(result)
        return FAILED if deployment.get("objection") else OK
    error: dict[str, Any] = deployment.get("error") or _why_given_up(progress)
    result["error"] = error
    headline = f"{identifier} {deployment['status']}"
    if error:
        headline += f" at step {error['step']}"
        headline += f" ({error['code']})" if error.get("code", "unknown") != "unknown" else ""
    terminal.error(headline, error.get("message", "").splitlines())
    terminal.document(result)
    return FAILED


def _waits(progress: dict[str, Any]) -> str:
    """Return what a deployment waits for, such as a build slot, or a region whose agent is gone."""
    for step in progress["steps"]:
        if not step.get("endedAt") and step.get("message"):
            return str(step["message"])
    return ""


def _why_given_up(progress: dict[str, Any]) -> dict[str, str]:
    """Return why a deployment ended that did not fail: it was cancelled or superseded."""
    ended = [step for step in progress["steps"] if step.get("error")]
    return {"step": ended[-1]["step"], "message": ended[-1]["error"]} if ended else {}


def _is_routed(progress: dict[str, Any]) -> bool:
    """Say whether the edges have confirmed the host names: from then on the URLs answer."""
    return any(step["step"] == "finalizing" and step.get("endedAt") for step in progress["steps"])


def _show(step: dict[str, Any], terminal: Terminal) -> None:
    seconds = (step["endedAt"] - step["startedAt"]) / 1000
    failed = bool(step.get("error"))
    mark = terminal.paint("✗", "red") if failed else terminal.paint("✓", "green")
    # Why it failed is said once, at the end.
    message = [] if failed else step.get("message", "").splitlines()
    first = f"  {message[0]}" if message else ""
    terminal.line(f"  {mark} {step['step']:<11}{terminal.paint(f'{seconds:6.2f} s', 'dim')}{first}")
    for more in message[1:]:
        terminal.line(f"      {terminal.paint(more, 'dim')}")


def _make_missing(client: Client, link: Link, terminal: Terminal) -> None:
    """Create the project and the app that a first deployment names."""
    try:
        client.call("apps.getApp", {"project": link.project, "app": link.app})
        return
    except Refused as refused:
        if refused.status != 404:
            raise
    try:
        client.call("projects.createProject", {"name": link.project, "slug": slug(link.project)})
        terminal.line(f"  {terminal.paint('✓', 'green')} created project {link.project}")
    except Refused as refused:
        if refused.status != 409:
            raise
    try:
        client.call("apps.createApp", {"project": link.project, "name": link.app, "slug": slug(link.app)})
        terminal.line(f"  {terminal.paint('✓', 'green')} created app {link.app}")
    except Refused as refused:
        if refused.status != 409:
            raise
