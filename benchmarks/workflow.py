"""Steps a second of the workflow engine: runs of 10 steps, 1 and 16 at a time, durable.

    .venv/bin/python -m benchmarks.workflow
    BENCH_MYSQL_URL=mysql://root@127.0.0.1:3306/bench .venv/bin/python -m benchmarks.workflow

SQLite runs with `synchronous=FULL` in a folder of its own. The baseline is measured beside it: how
many transactions of one INSERT the same database commits a second through the same ORM, from one
connection. The MariaDB database is created if it is missing, and its tables are emptied.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = float(os.environ.get("BENCH_SECONDS", "3"))
STEPS = 10


def measure(label: str) -> None:
    """Print the table of the database that the settings name; runs in a process of its own."""
    import django
    import structlog

    django.setup()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    from django.contrib.auth.models import Group
    from django.core.management import call_command

    from apps.workflows.engine import Run, State, Step, Workflow, WorkflowRun, start, step
    from apps.workflows.sweeper import Dispatcher

    call_command("migrate", verbosity=0)
    WorkflowRun.objects.all().delete()

    def recording(number: int) -> Step:
        def record(run: Run) -> int:
            return number

        record.__name__ = f"step_{number}"
        return step(record)

    def reaching(number: int) -> Step:
        def record(run: Run, value: int) -> int:
            return value

        record.__name__ = f"step_{number}"
        return step(outside=lambda run: number)(record)

    class Inside(Workflow):
        service = "bench-inside"
        steps = tuple(recording(number) for number in range(STEPS))

    class Outside(Workflow):
        service = "bench-outside"
        steps = tuple(reaching(number) for number in range(STEPS))

    began = time.perf_counter()
    commits = 0
    while time.perf_counter() - began < SECONDS:
        Group.objects.create(name=uuid.uuid4().hex)
        commits += 1
    baseline = commits / (time.perf_counter() - began)
    Group.objects.all().delete()
    print(f"{label:<10} {'bare commits':<24} {'':>8} {baseline:>10.0f}/s {1:>8.2f}")

    for workflow, what in ((Inside, "recording part only"), (Outside, "with an outside part")):
        for at_once in (1, 16):
            dispatcher = Dispatcher(None, threads=at_once)
            dispatcher.start()
            began = time.perf_counter()
            done = 0
            while time.perf_counter() - began < SECONDS:
                waiting = {start(workflow, {}).id for _ in range(at_once)}
                while waiting:
                    time.sleep(0.001 * at_once)
                    waiting -= set(
                        WorkflowRun.objects.filter(id__in=waiting, state=State.SUCCEEDED).values_list(
                            "id", flat=True
                        )
                    )
                done += at_once
            rate = done * STEPS / (time.perf_counter() - began)
            dispatcher.stop()
            print(f"{label:<10} {what:<24} {at_once:>8} {rate:>10.0f}/s {rate / baseline:>8.2f}")


def run_on(label: str, database_url: str, folder: str) -> None:
    """Measure one database in a process of its own."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "unkey.settings",
        "DATABASE_URL": database_url,
        "UNKEY_VAR": folder,
        "LOG_LEVEL": "warning",
    }
    subprocess.run(
        [sys.executable, "-m", "benchmarks.workflow", label], env=environment, cwd=ROOT, check=True
    )


def main() -> None:
    """Measure SQLite, and MariaDB where its URL is given."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    folder = tempfile.mkdtemp(prefix="unkey-bench-")
    try:
        print(f"{'database':<10} {'what':<24} {'at once':>8} {'steps':>12} {'ratio':>8}", flush=True)
        run_on("sqlite", f"sqlite:///{folder}/bench.sqlite3", folder)
        url = os.environ.get("BENCH_MYSQL_URL") or os.environ.get("DATABASE_URL", "")
        if url.startswith(("mysql://", "mariadb://")):
            run_on("mariadb", url, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
