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
from unkey.supervisor import MARK, Log, Supervisor, write_ports


class Command(BaseCommand):
    help = "Run web, feed, worker, beat, agent and edge under one supervisor."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--only",
            metavar="NAMES",
            default=",".join(processes.PORTS),
            help="run only these processes, separated by commas (default: %(default)s)",
        )
        parser.add_argument(
            "--start-timeout",
            type=float,
            default=120,
            metavar="SECONDS",
            help="give up when not all are healthy by then (default: %(default)g)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        names = [name for name in options["only"].split(",") if name]
        if unknown := sorted(set(names) - set(processes.PORTS)):
            raise CommandError(
                f"no such process: {', '.join(unknown)}; there are {', '.join(processes.PORTS)}"
            )
        installation = Installation(env.UNKEY_VAR)
        log = Log([*names, "up"], sys.stdout, os.environ)
        try:
            with installation.locked():
                self._run(names, installation, log, options["start_timeout"])
        except KeyboardInterrupt:
            log.line("up", "stopped")

    def _run(self, names: list[str], installation: Installation, log: Log, start_timeout: float) -> None:
        installation.end_leftovers(instances=False)
        settings = [setting for settings in processes.PORTS.values() for setting in settings]
        needed = {setting for name in names for setting in processes.PORTS[name]}
        chosen = {setting: int(getattr(env, setting)) for setting in settings}
        if env.PORTS == "auto":
            chosen |= ports.choose(env.BIND, [name for name in settings if not env.is_set(name)])
        ports.require(env.BIND, {name: port for name, port in chosen.items() if name in needed})
        log.line("up", f"preparing {env.UNKEY_VAR}")
        preparation.prepare()
        connections.close_all()
        write_ports(installation.run_folder, chosen)
        environ = {
            **os.environ,
            **{name: str(port) for name, port in chosen.items()},
            "PORTS": "default",
            "UNKEY_VAR": str(env.UNKEY_VAR),
            "PYTHONUNBUFFERED": "1",
            MARK: str(env.UNKEY_VAR),
        }
        asyncio.run(
            self._supervise(
                Supervisor(
                    [processes.program(name, chosen) for name in names],
                    run_folder=installation.run_folder,
                    environ=environ,
                    log=log,
                    start_timeout=start_timeout,
                ),
                _where_to_look(names, chosen),
            )
        )
        log.line("up", "stopped")

    async def _supervise(self, supervisor: Supervisor, ready_lines: list[str]) -> None:
        await supervisor.run(ready_lines)


def _where_to_look(names: list[str], chosen: dict[str, int]) -> list[str]:
    host = env.local_address
    lines = []
    if "web" in names:
        lines.append(f"admin         http://{host}:{chosen['WEB_PORT']}/admin/")
    if "edge" in names:
        lines += [
            f"API           http://{host}:{chosen['EDGE_API_PORT']}/v2",
            f"deployed apps http://<host>.{env.DEFAULT_DOMAIN}:{chosen['EDGE_HTTP_PORT']}"
            f" and https://…:{chosen['EDGE_HTTPS_PORT']}",
        ]
    return lines
