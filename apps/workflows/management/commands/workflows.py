"""`manage.py workflows`: list, show, retry, resume, cancel, give up, prune, figures."""

import getpass
import json
import math
from datetime import timedelta
from typing import Any, TypeAlias

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.workflows import history, timeline
from apps.workflows.intake import cancel
from apps.workflows.models import State, WorkflowRun
from unkey import clock

MOST_DAYS = 36_500

Answer: TypeAlias = tuple[Any, str]
"""What a program reads, and what a person does."""


class Command(BaseCommand):
    """Look at workflow runs and help those that are stuck."""

    help = "Look at workflow runs and help those that are stuck."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the sub-commands."""
        as_json = CommandParser(add_help=False)
        as_json.add_argument("--json", action="store_true", help="for programs; times in Unix milliseconds")
        commands = parser.add_subparsers(dest="command", required=True)

        def add(name: str, text: str) -> CommandParser:
            return commands.add_parser(name, help=text, parents=[as_json])

        listing = add("list", "the latest runs, newest first")
        listing.add_argument("--service")
        listing.add_argument("--state", choices=State.values)
        listing.add_argument("--key", help="for example project:proj_…")
        listing.add_argument("--workspace")
        listing.add_argument("--limit", type=int, default=20)
        for name, text in (
            ("show", "one run with its timeline"),
            ("retry", "start a failed or cancelled run's input anew"),
            ("resume", "let a run that needs attention go on, or end a wait"),
            ("cancel", "stop a run at its next boundary and undo what it did"),
            ("giveup", "end a run that needs attention as failed, undoing no more"),
        ):
            add(name, text).add_argument("run")
        pruning = add("prune", "delete the history of old runs")
        pruning.add_argument("--days", type=float, default=float(history.KEEP_DAYS))
        add("stats", "runs by service and state, and how late the oldest due run is")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one sub-command.

        Raises:
            CommandError: unknown run, or one that is not in the right state.
        """
        try:
            found, text = getattr(self, f"_{options['command']}")(options)
        except history.Refused as refused:
            raise CommandError(str(refused)) from None
        if options["json"]:
            text = json.dumps(found, indent=2, ensure_ascii=False)
        if text:
            self.stdout.write(text)

    def _list(self, options: dict[str, Any]) -> Answer:
        runs = WorkflowRun.objects.order_by("-arrival")
        for name, column in (("service",) * 2, ("state",) * 2, ("key",) * 2, ("workspace", "workspace_id")):
            if options[name]:
                runs = runs.filter(**{column: options[name]})
        chosen = list(runs[: max(options["limit"], 0)])
        lines = []
        for run in chosen:
            where = run.current_step if run.state != State.SUCCEEDED else ""
            lines.append(
                f"{run.id}  {run.created_at:%Y-%m-%d %H:%M:%S}  {run.state:<15}  {run.service:<16}  "
                f"{run.key}  {where} {run.error_code}".rstrip()
            )
        found = [
            {
                "id": run.id,
                "service": run.service,
                "state": run.state,
                "key": run.key,
                "workspaceId": run.workspace_id,
                "step": run.current_step,
                "errorCode": run.error_code,
                "createdAt": clock.to_ms(run.created_at),
            }
            for run in chosen
        ]
        return found, "\n".join(lines)

    def _show(self, options: dict[str, Any]) -> Answer:
        run = WorkflowRun.objects.filter(id=options["run"]).first()
        if run is None:
            raise CommandError(f"there is no run {options['run']}")
        lines = [f"{run}", f"key {run.key}  workspace {run.workspace_id or '-'}  queue {run.queue}"]
        if run.parent_id:
            lines.append(f"parent {run.parent_id}")
        lines.append(f"input {json.dumps(run.input, ensure_ascii=False)}")
        if run.error_code:
            lines.append(f"error {run.error_code}: {run.error_message}")
        if run.next_at is not None:
            lines.append(f"next at {run.next_at.isoformat()}  {run.wait_topic}".rstrip())
        for entry in timeline.timeline(run):
            attempts = f"{entry.attempts} attempts" if entry.attempts > 1 else ""
            said = " ".join(
                filter(None, (entry.run_id, entry.detail, attempts, " ".join(entry.result.split())))
            )
            lines.append(
                f"  {entry.at:%H:%M:%S.%f}  {entry.took:>10}  {entry.kind:<12}  {entry.title}  {said}".rstrip()
            )
        return timeline.as_json(run), "\n".join(lines)

    def _retry(self, options: dict[str, Any]) -> Answer:
        made = history.retry(options["run"], by=_operator())
        return {"id": made.id}, f"started {made.id}"

    def _resume(self, options: dict[str, Any]) -> Answer:
        run = history.resume(options["run"], by=_operator())
        return {"id": run.id, "state": run.state}, str(run)

    def _giveup(self, options: dict[str, Any]) -> Answer:
        run = history.give_up(options["run"], by=_operator())
        return {"id": run.id, "state": run.state}, str(run)

    def _cancel(self, options: dict[str, Any]) -> Answer:
        if not cancel(options["run"]):
            raise CommandError(f"{options['run']} is unknown, has ended, or is already being undone")
        if WorkflowRun.objects.filter(id=options["run"], state=State.CANCELLED).exists():
            return {"id": options["run"]}, f"{options['run']} is cancelled"
        return {"id": options["run"]}, f"{options['run']} will stop at its next boundary"

    def _prune(self, options: dict[str, Any]) -> Answer:
        if not (math.isfinite(options["days"]) and 0 < options["days"] <= MOST_DAYS):
            raise CommandError(f"--days has to be a number greater than 0 and at most {MOST_DAYS}")
        deleted = history.prune(timedelta(days=options["days"]))
        return {"deleted": deleted}, f"deleted {deleted} runs"

    def _stats(self, options: dict[str, Any]) -> Answer:
        found = history.stats()
        lines = [
            f"{service:<24}  " + "  ".join(f"{state} {count}" for state, count in states.items())
            for service, states in found["runs"].items()
        ]
        return found, "\n".join([*lines, f"due {found['due']}, the oldest for {found['lag_seconds']} s"])


def _operator() -> str:
    """Name who runs the command, for the timeline."""
    try:
        return f"{getpass.getuser()} (manage.py)"
    except (KeyError, OSError):  # no such user on this machine
        return "manage.py"
