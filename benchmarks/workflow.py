"""Steps a second of the workflow engine beside Restate's with its Python SDK: runs of 10 steps, durable.

    .venv/bin/python -m benchmarks.workflow

One `ctx.run` of Restate is a result that is on disk before the next step begins: ours is a step with
an outside part. Steps that only record, which share transactions, are printed too, and steps that
only record and write a row of their own. Both sides run with fsync on, one after the other in short
rounds, and the disk's own rate of fsyncs stands beside them. So many callers each start a run when
their last one has ended: Restate's over HTTP, ours by `start()`, where the starts that are due
together share a transaction, as Restate's ingress shares a write. SQLite always runs, MariaDB where
it is installed.
"""

import logging
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path

from benchmarks import mariadb, restate_side

ROOT = Path(__file__).resolve().parent.parent
SECONDS = float(os.environ.get("BENCH_SECONDS", "3"))
ROUNDS = 3
STEPS = 10
BARS = {"sqlite": {1: 2.0, 16: 3.0, 64: 3.0}, "mariadb": {16: 1.5, 64: 1.5}}


def serve() -> None:
    """Answer lines `<what> <at once> <seconds>` with steps a second, on the database of the settings."""
    import django
    import structlog

    django.setup()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    from django.contrib.auth.models import Group
    from django.core.management import call_command
    from django.db import transaction

    from apps.workflows import sweeper
    from apps.workflows.engine import Run, Step, Workflow, start, step
    from apps.workflows.transactions import in_transaction

    call_command("migrate", verbosity=0)
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()

    def numbered(number: int, *, outside: bool = False, writes: bool = False) -> Step:
        def record(run: Run, value: int = 0) -> int:
            if writes:
                Group.objects.create(name=uuid.uuid4().hex)
            if number == STEPS - 1:
                transaction.on_commit(partial(ended.put, run.input["caller"]))
            return number

        record.__name__ = f"step_{number}"
        return step(outside=(lambda run: number) if outside else None)(record)

    class Inside(Workflow):
        service = "bench-inside"
        steps = tuple(numbered(number) for number in range(STEPS))

    class Outside(Workflow):
        service = "bench-outside"
        steps = tuple(numbered(number, outside=True) for number in range(STEPS))

    class Writing(Workflow):
        service = "bench-writing"
        steps = tuple(numbered(number, writes=True) for number in range(STEPS))

    workflows: dict[str, type[Workflow]] = {"inside": Inside, "outside": Outside, "writing": Writing}

    def begin(workflow: type[Workflow], callers: list[int]) -> None:
        for caller in callers:
            start(workflow, {"caller": caller})

    def measure(workflow: type[Workflow], at_once: int, seconds: float) -> float:
        dispatcher = sweeper.serve(None, at_once)
        for caller in range(at_once):
            ended.put(caller)
        started = 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            callers = [ended.get()]
            while not ended.empty():
                callers.append(ended.get())
            started += len(callers)
            in_transaction(partial(begin, workflow, callers))
        for _ in range(at_once):  # as on the other side, the time of the last runs counts too
            ended.get()
        rate = started * STEPS / (time.perf_counter() - began)
        dispatcher.stop()
        return rate

    for line in sys.stdin:
        what, at_once, seconds = line.split()
        print(measure(workflows[what], int(at_once), float(seconds)), flush=True)


class Ours:
    """A worker process on a database of its own."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workflow", "serve"],
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "unkey.settings",
                "DATABASE_URL": database_url,
                "UNKEY_VAR": str(folder),
                "LOG_LEVEL": "warning",
                "DEBUG": "0",  # as in production; in development Django takes each statement down
            },
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, what: str, at_once: int, seconds: float) -> float:
        """Return steps a second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what} {at_once} {seconds}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def fsyncs(folder: Path, seconds: float = 1.0) -> float:
    """Return how often a second the disk keeps 4 KiB that are written one after another."""
    done = 0
    with open(folder / "fsync", "wb") as file:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
            done += 1
    return done / seconds


def compare(label: str, ours: Ours, port: int | None, folder: Path) -> bool:
    """Print one database's table; return whether its bars were met."""
    met = True
    for at_once in (1, 16, 64):
        ours.measure("outside", at_once, min(SECONDS, 1))  # both warm
        if port is not None:
            restate_side.measure(port, at_once, min(SECONDS, 1))
        mine, theirs, disk = [], [], []
        for _ in range(ROUNDS):
            disk.append(fsyncs(folder, 0.5))
            mine.append(ours.measure("outside", at_once, SECONDS))
            theirs.append(restate_side.measure(port, at_once, SECONDS) if port is not None else 0.0)
        others = {what: ours.measure(what, at_once, SECONDS) for what in ("inside", "writing")}
        ratio = (
            statistics.median(m / t for m, t in zip(mine, theirs, strict=True)) if port is not None else 0.0
        )
        bar = BARS[label].get(at_once)
        verdict = ""
        if bar is not None and port is not None:
            met = met and ratio >= bar
            verdict = f"bar {bar:g}: {'ok' if ratio >= bar else 'MISSED'}"
        print(
            f"{label:<8} {at_once:>3} at once  ours {statistics.median(mine):>6.0f}  "
            f"restate {statistics.median(theirs):>6.0f}  ratio {ratio:>5.2f}  {verdict:<16} "
            f"only recording {others['inside']:>6.0f}, a row each {others['writing']:>6.0f}  "
            f"fsyncs {statistics.median(disk):>6.0f}",
            flush=True,
        )
    return met


def main() -> int:
    """Measure; 1 when a bar is missed, or Restate is missing."""
    if sys.argv[1:] == ["serve"]:
        serve()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="unkey-bench-"))
    kept = ROOT / "var" / "bench" / "restate"
    try:
        print(
            "steps a second (ours: steps with an outside part), medians; fsyncs of the disk a second",
            flush=True,
        )
        try:
            with restate_side.running(kept) as port:
                return int(not _both(port, folder))
        except restate_side.Missing as missing:
            print(f"{missing}: ours alone, nothing to compare with")
            _both(None, folder)
            return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _both(port: int | None, folder: Path) -> bool:
    ours = Ours(f"sqlite:///{folder}/bench.sqlite3", folder)
    try:
        met = compare("sqlite", ours, port, folder)
    finally:
        ours.stop()
    with mariadb.running(folder) as url:
        if url is None:
            print(
                "mariadb  not measured: mariadbd or its Python driver is not installed (make test-services does)"
            )
            return met
        ours = Ours(url, folder)
        try:
            return compare("mariadb", ours, port, folder) and met
        finally:
            ours.stop()


if __name__ == "__main__":
    sys.exit(main())
