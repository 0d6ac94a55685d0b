"""`manage.py workflows`: list, show, retry, resume, cancel, give up, prune, figures."""

import json
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.workflows import history
from apps.workflows.intake import cancel
from apps.workflows.models import State, WorkflowRun


class Command(BaseCommand):
    """Look at workflow runs and help those that are stuck."""

    help = "Look at workflow runs and help those that are stuck."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the sub-commands."""
        commands = parser.add_subparsers(dest="command", required=True)
        listing = commands.add_parser("list", help="the latest runs, newest first")
        listing.add_argument("--service")
        listing.add_argument("--state", choices=State.values)
        listing.add_argument("--key", help="for example project:proj_…")
        listing.add_argument("--limit", type=int, default=20)
        for name, text in (
            ("show", "one run with its timeline"),
            ("retry", "start a failed or cancelled run's input anew"),
            ("resume", "let a run that needs attention go on, or end a wait"),
            ("cancel", "stop a run at its next boundary and undo what it did"),
            ("giveup", "end a run that needs attention as failed, undoing no more"),
        ):
            commands.add_parser(name, help=text).add_argument("run")
        pruning = commands.add_parser("prune", help="delete the history of old runs")
        pruning.add_argument("--days", type=float, default=float(history.KEEP_DAYS))
        commands.add_parser("stats", help="runs by service and state, and how late the oldest due run is")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one sub-command.

        Raises:
            CommandError: unknown run, or one that is not in the right state.
        """
        try:
            getattr(self, f"_{options['command']}")(options)
        except history.Refused as refused:
            raise CommandError(str(refused)) from None

    def _list(self, options: dict[str, Any]) -> None:
        runs = WorkflowRun.objects.order_by("-arrival")
        for name in ("service", "state", "key"):
            if options[name]:
                runs = runs.filter(**{name: options[name]})
        for run in runs[: options["limit"]]:
            created = f"{run.created_at:%Y-%m-%d %H:%M:%S}"
            where = run.current_step if run.state != State.SUCCEEDED else ""
            self.stdout.write(
                f"{run.id}  {created}  {run.state:<15}  {run.service:<16}  {run.key}  {where} {run.error_code}".rstrip()
            )

    def _show(self, options: dict[str, Any]) -> None:
        run = WorkflowRun.objects.filter(id=options["run"]).first()
        if run is None:
            raise CommandError(f"there is no run {options['run']}")
        self.stdout.write(f"{run}\nkey {run.key}  workspace {run.workspace_id or '-'}  queue {run.queue}")
        self.stdout.write(f"input {json.dumps(run.input)}")
        if run.error_code:
            self.stdout.write(f"error {run.error_code}: {run.error_message}")
        if run.next_at is not None:
            self.stdout.write(f"next at {run.next_at.isoformat()}  {run.wait_topic}".rstrip())
        for row in run.journal.order_by("id"):
            took = (
                f"{(row.ended_at - row.started_at).total_seconds():.3f} s" if row.ended_at else "not finished"
            )
            said = row.error if row.ended_at is None else json.dumps(row.result)
            self.stdout.write(
                f"  {row.started_at:%H:%M:%S.%f}  {row.kind:<12}  {row.name:<24}  "
                f"attempts {row.attempts}  {took}  {said}"
            )

    def _retry(self, options: dict[str, Any]) -> None:
        self.stdout.write(f"started {history.retry(options['run']).id}")

    def _resume(self, options: dict[str, Any]) -> None:
        self.stdout.write(str(history.resume(options["run"])))

    def _giveup(self, options: dict[str, Any]) -> None:
        self.stdout.write(str(history.give_up(options["run"])))

    def _cancel(self, options: dict[str, Any]) -> None:
        if not cancel(options["run"]):
            raise CommandError(f"{options['run']} is unknown, has ended, or is already being undone")
        self.stdout.write(f"{options['run']} will stop at its next boundary")

    def _prune(self, options: dict[str, Any]) -> None:
        self.stdout.write(f"deleted {history.prune(timedelta(days=options['days']))} runs")

    def _stats(self, options: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(history.stats(), indent=2))
