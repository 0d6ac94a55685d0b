"""How soon a step is tried again whose worker was killed, and whether a long step keeps its lease.

    .venv/bin/python -m benchmarks.recover

With the default lease of 15 s. First a worker is killed with SIGKILL inside an outside part, while
another one stands by: the time until the next attempt begins is measured, at most 16 s. Then an
outside part works for longer than two leases, holding the interpreter as a step does that computes: it must not be
attempted a second time.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BAR_SECONDS = 16.0
BUSY_SECONDS = 32.0
PATIENCE_SECONDS = 60.0


def define() -> None:
    """Make the workflow known; the outside part notes each attempt in a file."""
    from apps.workflows.engine import Run, Workflow, step

    def work(run: Run) -> int:
        room = Path(run.input["room"])
        with open(room / "attempts", "a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
        if run.attempt == 1:
            end = time.monotonic() + run.input["seconds"]
            while time.monotonic() < end:
                sum(range(1000))  # holds the interpreter as a step does that computes
        return run.attempt

    @step(outside=work)
    def working(run: Run, attempt: int) -> int:
        return attempt

    class Works(Workflow):
        service = "bench-recover"
        steps = (working,)


def worker() -> None:
    """Drive what is due until killed."""
    import django

    django.setup()
    define()
    from apps.workflows.sweeper import Dispatcher

    Dispatcher(None, threads=4).start()
    print("ready", flush=True)
    while True:
        time.sleep(1)


def attempts(room: Path) -> list[tuple[int, float]]:
    """Return the process and the time of each attempt."""
    file = room / "attempts"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def begin(environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a worker and wait until it sweeps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.recover", "worker"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        if process.poll() is not None:
            raise RuntimeError("the worker ended at its start")
    return process


def wait(holds: Callable[[], object], what: str) -> None:
    """Wait until a condition holds.

    Raises:
        RuntimeError: it did not in a minute.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(0.01)


def measure(folder: Path) -> int:
    """Kill a worker, keep another one busy, and print both; 1 when one is past its bar."""
    import django

    django.setup()
    define()
    from django.core.management import call_command

    from apps.workflows.definition import workflow_named
    from apps.workflows.engine import State, WorkflowRun, start

    call_command("migrate", verbosity=0)
    works = workflow_named("bench-recover")
    assert works is not None
    environment = dict(os.environ)
    workers = [begin(environment), begin(environment)]
    try:
        room = folder / "killed"
        room.mkdir()
        start(works, {"room": str(room), "seconds": 3600})
        wait(lambda: attempts(room), "the first attempt")
        doomed = next(each for each in workers if each.pid == attempts(room)[0][0])
        doomed.kill()
        killed = time.time()
        wait(lambda: len(attempts(room)) > 1, "the second attempt")
        delay = attempts(room)[1][1] - killed
        recovered = delay <= BAR_SECONDS
        print(
            f"killed in a step: next attempt after {delay:.1f} s  bar {BAR_SECONDS:g} s: {_word(recovered)}",
            flush=True,
        )
        workers.append(begin(environment))

        room = folder / "busy"
        room.mkdir()
        run = start(works, {"room": str(room), "seconds": BUSY_SECONDS})
        wait(
            lambda: WorkflowRun.objects.filter(id=run.id, state=State.SUCCEEDED).exists(),
            "the end of the long step",
        )
        kept = len(attempts(room)) == 1
        print(
            f"busy for {BUSY_SECONDS:g} s: {len(attempts(room))} attempt(s), lease of 15 s kept: {_word(kept)}"
        )
        return int(not (recovered and kept))
    finally:
        for each in workers:
            each.kill()
            each.wait()


def _word(met: bool) -> str:
    return "ok" if met else "MISSED"


def main() -> int:
    """Run it on a database of its own."""
    if sys.argv[1:] == ["worker"]:
        worker()
        return 0
    folder = Path(tempfile.mkdtemp(prefix="unkey-bench-"))
    os.environ.update(
        DJANGO_SETTINGS_MODULE="unkey.settings",
        DATABASE_URL=f"sqlite:///{folder}/bench.sqlite3",
        UNKEY_VAR=str(folder),
        CELERY_BROKER_URL=f"filesystem://{folder}/broker",
        LOG_LEVEL="error",
    )
    os.environ.pop("WORKFLOW_LEASE_SECONDS", None)
    try:
        return measure(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
