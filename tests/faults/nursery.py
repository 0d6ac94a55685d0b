"""Forks Celery workers that have everything loaded, so that a killed one is replaced in a moment.

Reads one number a line from standard input, forks a worker of that number, and answers with its process
id. Ends with its input, and its workers with it. A worker that ends by an error of its own leaves it in its
log, and a file `failed-<number>`.
"""

import ctypes
import os
import signal
import sys
import traceback
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import FrameType

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")
django.setup()

from django.db import connections  # noqa: E402

from tests.faults import flows  # noqa: E402, F401
from unkey import clock  # noqa: E402
from unkey.celery import app  # noqa: E402

AHEAD, BEHIND, RIGHT = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2, signal.SIGRTMIN + 3
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def _obey_clock_signals() -> None:
    """Let signals move this process's clock by an hour, and back to right."""
    moved = ExitStack()

    def move(number: int, _frame: FrameType | None) -> None:
        moved.close()
        hours = {int(AHEAD): 1, int(BEHIND): -1}.get(number, 0)
        moved.enter_context(clock.shifted(timedelta(hours=hours)))

    for number in (AHEAD, BEHIND, RIGHT):
        signal.signal(number, move)


def _room() -> Path:
    return Path(os.environ["FAULTS_ROOM"])


def _work(number: str) -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(_room() / f"worker-{number}.log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    _obey_clock_signals()
    os.environ["UNKEY_READY_FILE"] = str(_room() / f"ready-{number}")
    app.worker_main(["worker", "--loglevel=INFO", "-n", f"w{number}@faults", "--without-gossip"])


def main() -> None:
    """Fork workers until the input ends."""
    import celery.apps.worker
    import celery.bin.worker
    import celery.worker.consumer  # noqa: F401

    app.loader.import_default_modules()
    connections.close_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                _work(line.strip())
            except BaseException:
                # Left to the interpreter, which does not get to it, nobody would read why.
                sys.stderr.write(traceback.format_exc())
                (_room() / f"failed-{line.strip()}").touch()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
