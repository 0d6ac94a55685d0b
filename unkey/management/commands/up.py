"""`manage.py up`: the whole system on this machine, until Ctrl-C."""

import asyncio
import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from unkey import ports, preparation, processes
from unkey.env import env
from unkey.installation import Installation
from unkey.processes import Process
from unkey.supervisor import MARK, Log, Supervisor, write_ports


class Command(BaseCommand):
    help = "Run web, feed, worker, beat, agent and edge under one supervisor."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--only",
            metavar="NAMES",
            default="",
            help=f"run only these processes, separated by commas: {', '.join(processes.PORTS)}; where REGIONS "
            "asks for several, agent and edge stand for all of them, agent-<region> for one",
        )
        parser.add_argument(
            "--start-timeout",
            type=float,
            default=120,
            metavar="SECONDS",
            help="give up when not all are healthy by then (default: %(default)g)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        everything = processes.processes()
        asked = [name for name in options["only"].split(",") if name]
        known = {name for each in everything for name in (each.name, each.kind)}
        if unknown := sorted(set(asked) - known):
            names = ", ".join(each.name for each in everything)
            raise CommandError(f"no such process: {', '.join(unknown)}; there are {names}")
        chosen = [each for each in everything if not asked or {each.name, each.kind} & set(asked)]
        installation = Installation(env.UNKEY_VAR)
        log = Log([*(each.name for each in chosen), "up"], sys.stdout, os.environ)
        try:
            with installation.locked():
                self._run(everything, chosen, installation, log, options["start_timeout"])
        except KeyboardInterrupt:
            log.line("up", "stopped")

    def _run(
        self,
        everything: list[Process],
        chosen: list[Process],
        installation: Installation,
        log: Log,
        start_timeout: float,
    ) -> None:
        installation.end_leftovers(instances=False)
        settings = {name: setting for each in everything for name, setting in each.ports.items()}
        numbers = {name: each.number for each in everything for name in each.ports}
        given = {name: int(getattr(env, setting)) + numbers[name] for name, setting in settings.items()}
        if env.PORTS == "auto":
            given |= ports.choose(
                env.BIND, [name for name, setting in settings.items() if not env.is_set(setting)]
            )
        needed = {name for each in chosen for name in each.ports}
        ports.require(env.BIND, {name: port for name, port in given.items() if name in needed})
        log.line("up", f"preparing {env.UNKEY_VAR}")
        preparation.prepare()
        connections.close_all()
        write_ports(installation.run_folder, given)
        environ = {
            **os.environ,
            **{name: str(port) for name, port in given.items() if name == settings[name]},
            "REGION": processes.home_region(),
            "PORTS": "default",
            "UNKEY_VAR": str(env.UNKEY_VAR),
            "PYTHONUNBUFFERED": "1",
            MARK: str(env.UNKEY_VAR),
        }
        asyncio.run(
            self._supervise(
                Supervisor(
                    [processes.program(each, given) for each in chosen],
                    run_folder=installation.run_folder,
                    environ=environ,
                    log=log,
                    start_timeout=start_timeout,
                ),
                _where_to_look(chosen, given),
            )
        )
        log.line("up", "stopped")

    async def _supervise(self, supervisor: Supervisor, ready_lines: list[str]) -> None:
        await supervisor.run(ready_lines)


def _where_to_look(chosen: list[Process], given: dict[str, int]) -> list[str]:
    host = env.local_address
    lines = []
    for each in chosen:
        port = {setting: given[name] for name, setting in each.ports.items()}
        if each.kind == "web":
            lines.append(f"admin         http://{host}:{port['WEB_PORT']}/admin/")
        elif each.kind == "edge":
            where = f"  ({each.environ['REGION']})" if each.name != each.kind else ""
            lines += [
                f"API           http://{host}:{port['EDGE_API_PORT']}/v2{where}",
                f"deployed apps http://<host>.{env.DEFAULT_DOMAIN}:{port['EDGE_HTTP_PORT']}"
                f" and https://…:{port['EDGE_HTTPS_PORT']}{where}",
            ]
    return lines
