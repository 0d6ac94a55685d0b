"""The storm: starts workflows, lets faults fall on the workers, and then lets everything come to rest."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.transaction import TransactionManagementError

from apps.workflows import history
from apps.workflows.engine import State, Workflow, WorkflowRun, cancel, notify, start
from apps.workflows.models import ACTIVE
from tests.faults import flows
from tests.faults.nursery import AHEAD, BEHIND, RIGHT
from tests.faults.servers import Database, Mariadb
from tests.faults.storm_settings import LEASE_SECONDS
from unkey.env import ROOT

WORKERS = 6
GRACE_SECONDS = 5.0
LINE_BYTES = 150  # about one line of the ledger
LONGEST_PAUSE_SECONDS = 2.0
KEYS = 6
STILLBORN = 4 * WORKERS

_T = TypeVar("_T")


@dataclass(slots=True)
class Started:
    """What the harness knows of a run that it started.

    Args:
        name: unique; also in the run's input.
        workflow: its class.
        input: its script.
        run_id: None: its transaction was rolled back on purpose.
        at_ns: when its transaction was known to be committed, on the machine's monotonic clock.
        urgent: goes first.
        cancelled: what `cancel` said; None: not asked, or its answer was lost.
        cancel_asked: `cancel` was called, whether or not an answer came.
    """

    name: str
    workflow: type[Workflow]
    input: dict[str, Any]
    run_id: str | None = None
    at_ns: int = 0
    urgent: bool = False
    cancelled: bool | None = None
    cancel_asked: bool = False


@dataclass(slots=True)
class Worker:
    """A worker process."""

    number: int
    pid: int
    begun: float = field(default_factory=time.monotonic)
    paused_until: float = 0.0
    clock_until: float = 0.0


@dataclass(slots=True)
class Account:
    """What was done: runs, faults by kind, and what had to be helped."""

    started: list[Started] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    unreached: int = 0
    resumed: int = 0
    needed_later_clock: bool = False


class Storm:
    """Runs workflows under faults.

    Args:
        room: the folder of everything; `flows.ROOM`.
        database: under test.
        seed: decides scripts, faults and their order; the machine decides their exact moments.
        workflows: how many to start; children come on top.
        faults: how many to let fall.
        say: told of progress, a line each time.
    """

    def __init__(
        self,
        room: Path,
        database: Database,
        *,
        seed: int,
        workflows: int,
        faults: int,
        say: Callable[[str], None],
    ) -> None:
        self._room = room
        self._database = database
        self._dice = random.Random(seed)
        self._wanted_runs = workflows
        self._wanted_faults = faults
        self._say = say
        self._workers: list[Worker] = []
        self._numbers = iter(range(1_000_000))
        self._signals: list[tuple[float, str]] = []
        self._cancels: list[tuple[float, Started]] = []
        self._broker_back = 0.0
        self._counted = 0
        self._stillborn = 0
        self.account = Account()
        (room / "plan").mkdir()
        with open(room / "nursery.log", "w") as log:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.nursery"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._nursery.stdout is not None
        if self._nursery.stdout.readline() != "ready\n":
            raise RuntimeError(f"the nursery did not start: {(room / 'nursery.log').read_text()}")

    # -- the whole ---------------------------------------------------------------------------------

    def blow(self) -> Account:
        """Start all runs and let all faults fall, wait until every run has ended, and return what was done.

        Runs that have not ended in time are left as they are, for the model to complain of.
        """
        try:
            for _ in range(WORKERS):
                self._spawn()
            for place in flows.places():
                for what in ("kill", "stop") if ".outside." in place else ("kill",):
                    (self._room / "plan" / f"{what} {place}").touch()
            last_said = 0
            while self._fallen() < self._wanted_faults or len(self.account.started) < self._wanted_runs:
                share = (self._fallen() + 1) / max(self._wanted_faults, 1)
                while len(self.account.started) < min(self._wanted_runs, share * self._wanted_runs):
                    self._start_one()
                if self._fallen() < self._wanted_faults:
                    self._one_fault()
                self._let_work(self._dice.randint(0, 4))
                if self._fallen() >= last_said + 50:
                    last_said = self._fallen()
                    self._say(f"{len(self.account.started)} runs started, {self._fallen()} faults")
            self._calm()
        finally:
            self.stop()
        self._count_claims()
        self.account.unreached = len(list((self._room / "plan").iterdir()))
        return self.account

    def stop(self) -> None:
        """End the workers."""
        if self._nursery.poll() is None:
            assert self._nursery.stdin is not None
            self._nursery.stdin.close()
            self._nursery.wait()
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        self._workers.clear()

    def _let_work(self, lines: int) -> None:
        """Wait until the ledger has grown: faults that only meet workers that begin prove nothing."""
        ledger = self._room / "ledger"

        def size() -> int:
            return ledger.stat().st_size if ledger.exists() else 0

        enough = size() + lines * LINE_BYTES
        end = time.monotonic() + LONGEST_PAUSE_SECONDS
        while True:
            self._tend()
            if size() >= enough or time.monotonic() > end:
                return
            time.sleep(0.02)

    def _calm(self) -> None:
        (self._room / "armed").unlink(missing_ok=True)
        for worker in self._workers:
            worker.paused_until = worker.clock_until = 0.0
        self._broker_back = 0.0
        end = time.monotonic() + 90
        ahead_from = time.monotonic() + 8
        quiet = 0
        while time.monotonic() < end:
            self._tend()
            if self._signals or self._cancels:
                time.sleep(0.05)
                continue
            quiet = quiet + 1 if not self._try(self._active) else 0
            if quiet >= 3:
                return
            if (
                time.monotonic() > ahead_from
                and self.account.faults["clock"]
                and not self.account.needed_later_clock
            ):
                # A worker whose clock was ahead wrote leases and timers of an hour from now.
                self.account.needed_later_clock = True
                for worker in self._workers:
                    self._kill(worker.pid, AHEAD)
            time.sleep(0.2)

    def _active(self) -> int:
        return WorkflowRun.objects.filter(state__in=[*ACTIVE, State.NEEDS_ATTENTION]).count()

    def _tend(self) -> None:
        """Do what is due: let the paused go on, replace the dead, give signals, cancel, mend."""
        now = time.monotonic()
        for worker in list(self._workers):
            state = _state(worker.pid)
            if state in ("", "Z"):
                self._workers.remove(worker)
                self._complain_of(worker)
                self._spawn()
                continue
            self._let_go_on(worker, state)
            if worker.clock_until and now >= worker.clock_until:
                worker.clock_until = 0
                self._kill(worker.pid, RIGHT)
        if self._broker_back and now >= self._broker_back:
            self._broker_back = 0
        if not self._broker_back and (hidden := self._room / "broker.away").exists():
            shutil.rmtree(self._room / "broker", ignore_errors=True)
            hidden.rename(self._room / "broker")
        for when, name in [each for each in self._signals if each[0] <= now]:
            self._signals.remove((when, name))
            self._try(partial(self._give_signal, name))
        for when, started in [each for each in self._cancels if each[0] <= now]:
            self._cancels.remove((when, started))
            self._cancel(started)
        self._try(self._mend)
        self._count_claims()

    def _complain_of(self, worker: Worker) -> None:
        """Tell why a worker ended by itself: a database that is away for a moment may do that, but not for long.

        Raises:
            RuntimeError: so many in a row did not start that none ever will.
        """
        if not (self._room / f"failed-{worker.number}").exists():
            self._stillborn = 0
            return
        self._stillborn += 1
        said = (self._room / f"worker-{worker.number}.log").read_text().strip()
        if self._stillborn > STILLBORN:
            raise RuntimeError(f"workers do not start; the last of {self._stillborn} said: {said}")
        self._say(f"worker {worker.number} did not start: {said.splitlines()[-1] if said else 'silently'}")

    def _mend(self) -> None:
        for row in WorkflowRun.objects.filter(state=State.NEEDS_ATTENTION, service=flows.Stuck.service):
            self._give_signal(f"mended {row.id}")
            with contextlib.suppress(history.Refused):
                history.resume(row.id)
                self.account.resumed += 1

    # -- faults ------------------------------------------------------------------------------------

    def _fallen(self) -> int:
        return self.account.faults.total()

    def _one_fault(self) -> None:
        if self._dice.random() < 0.6:
            (self._room / "armed").touch()  # falls at the next point that no fault has fallen at yet
            return
        fault = self._dice.choices(
            (
                self._fault_kill,
                self._fault_pause,
                self._fault_broker,
                self._fault_database,
                self._fault_clock,
            ),
            (30, 35, 15, 8, 12),
        )[0]
        fault()

    def _healthy(self) -> list[Worker]:
        """Workers that are up and take work: killing one that only begins proves nothing."""
        return [
            each
            for each in self._workers
            if not each.paused_until
            and (
                (self._room / f"ready-{each.number}").exists()
                or time.monotonic() - each.begun > GRACE_SECONDS
            )
            and _state(each.pid) not in ("", "Z", "T")
        ]

    def _victim(self) -> Worker | None:
        """Choose a healthy worker, rather one that is in an outside part just now."""
        healthy = self._healthy()
        busy = [each for each in healthy if each.pid in self._in_outside_parts()]
        return self._any(busy if busy and self._dice.random() < 0.7 else healthy)

    def _in_outside_parts(self) -> set[int]:
        file = self._room / "ledger"
        lines = file.read_text().splitlines()[-200:] if file.exists() else []
        begun: dict[str, int] = {}
        for line in lines:
            entry = json.loads(line)
            if entry["what"] == "begin":
                begun[entry["value"]] = entry["pid"]
            else:
                begun.pop(entry["value"], None)
        return set(begun.values())

    def _fault_kill(self) -> None:
        if worker := self._victim():
            self._kill(worker.pid, signal.SIGKILL)
            self.account.faults["kill"] += 1

    def _fault_pause(self) -> None:
        if len(self._healthy()) > 1 and (worker := self._victim()):
            worker.paused_until = time.monotonic() + LEASE_SECONDS + self._dice.uniform(0.1, 1)
            self._kill(worker.pid, signal.SIGSTOP)
            self.account.faults["pause"] += 1

    def _fault_broker(self) -> None:
        messages = self._room / "broker" / "messages"
        kind = self._dice.choice(("wipe", "double", "away"))
        if self._broker_back:
            return
        if kind == "away":
            with contextlib.suppress(OSError):
                (self._room / "broker").rename(self._room / "broker.away")
                self._broker_back = time.monotonic() + self._dice.uniform(0.3, 1.5)
        else:
            for file in list(messages.glob("*.msg")) if messages.exists() else []:
                with contextlib.suppress(OSError):
                    if kind == "wipe":
                        file.unlink()
                    else:
                        number, _, rest = file.name.partition("-")
                        other = int(number) + self._dice.randrange(-(10**9), 10**9)
                        shutil.copy(
                            file, file.with_name(f"{other:020d}-{uuid.uuid4().hex}.{rest.partition('.')[2]}")
                        )
        self.account.faults[f"broker {kind}"] += 1

    def _fault_database(self) -> None:
        if isinstance(self._database, Mariadb):
            connection.close()
            self._database.kill()
            time.sleep(self._dice.uniform(0, 0.5))
            self._database.start()
            self.account.faults["database restart"] += 1
        elif connection.vendor == "sqlite":
            seconds = self._dice.choice((0.2, 0.5, LEASE_SECONDS + 0.5))
            with contextlib.suppress(DatabaseError), transaction.atomic():
                time.sleep(seconds)
            self.account.faults["database held"] += 1

    def _fault_clock(self) -> None:
        if worker := self._any([each for each in self._healthy() if not each.clock_until]):
            ahead = self._dice.random() < 0.5
            self._kill(worker.pid, AHEAD if ahead else BEHIND)
            worker.clock_until = time.monotonic() + self._dice.uniform(0.5, 4)
            self.account.faults["clock"] += 1

    def _count_claims(self) -> None:
        """Count the faults that workers carried out on themselves."""
        file = self._room / "faults"
        lines = file.read_text().splitlines() if file.exists() else []
        for line in lines[self._counted :]:
            self.account.faults["kill at a point" if '"kill"' in line else "pause at a point"] += 1
        self._counted = len(lines)

    # -- runs --------------------------------------------------------------------------------------

    def _start_one(self) -> None:
        dice = self._dice
        number = len(self.account.started)
        workflow = dice.choices(
            (
                flows.Sent,
                flows.Exclusive,
                flows.Hurried,
                flows.Shared,
                flows.Promote,
                flows.Naps,
                flows.Listens,
                flows.Parent,
                flows.Stuck,
            ),
            (10, 24, 8, 20, 8, 8, 10, 12, 6),
        )[0]
        name = f"n{number}"
        script: dict[str, Any] = {"name": name, "k": str(dice.randrange(KEYS))}
        if workflow in (flows.Naps, flows.Listens, flows.Stuck):
            script["k"] = name if dice.random() < 0.5 else script["k"]
        script["ms"] = dice.choice((0, 20, 100, 300, 800))
        script["nap"] = round(dice.uniform(0.02, 0.8), 3)
        script["topic"] = f"topic {name}" if dice.random() < 0.7 else f"topic {dice.randrange(8)}"
        if workflow is flows.Parent:
            script["child"] = {"k": str(dice.randrange(KEYS)), "ms": dice.choice((0, 20))}
            if dice.random() < 0.3:
                script["child"]["refuse"] = dice.choice(flows.Exclusive.step_names())
        if workflow is flows.Stuck:
            script |= {"refuse": "t", "stuck": True}
        elif dice.random() < 0.2 and workflow.undo_by_name:
            script["refuse"] = dice.choice(
                [each for each in workflow.step_names() if each not in ("nap", "listen")]
            )
        if dice.random() < 0.25:
            named = [each for each in workflow.step_names() if each in "abcdefghst"]
            if named:
                script["fail"] = {dice.choice(named): dice.randint(1, 3)}
        started = Started(name, workflow, script, urgent=workflow.urgent)
        self.account.started.append(started)
        roll_back = dice.random() < 0.06
        twice = dice.random() < 0.15
        if "listen" in workflow.by_name:
            if dice.random() < 0.2:
                self._try(lambda: self._give_signal(script["topic"]))  # before there is anybody who waits
            else:
                self._signals.append((time.monotonic() + dice.uniform(0, 3), script["topic"]))
        self._try(lambda: self._create(started, roll_back))
        if twice and not roll_back:
            again = self._try(lambda: self._create(started, False))
            assert again == started.run_id
        started.at_ns = time.monotonic_ns()
        if not roll_back and dice.random() < 0.1 and workflow is not flows.Stuck:
            self._cancels.append((time.monotonic() + dice.uniform(0, 1.5), started))

    def _create(self, started: Started, roll_back: bool) -> str:
        with transaction.atomic():
            row = start(started.workflow, started.input, idempotency_key=started.name)
            if roll_back:
                transaction.set_rollback(True)
        if not roll_back:
            started.run_id = row.id
        return row.id

    def _give_signal(self, name: str) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM faults_signal WHERE name = %s", [name])
            if cursor.fetchone() is None:
                cursor.execute("INSERT INTO faults_signal (name) VALUES (%s)", [name])
            notify(name)

    def _cancel(self, started: Started) -> None:
        started.cancel_asked = True
        assert started.run_id is not None
        run_id = started.run_id
        answers: list[bool] = []
        tries = 0

        def ask() -> None:
            nonlocal tries
            tries += 1
            answers.append(cancel(run_id))

        self._try(ask)
        started.cancelled = answers[-1] if tries == 1 else None

    # -- small things ------------------------------------------------------------------------------

    def _any(self, workers: list[Worker]) -> Worker | None:
        return self._dice.choice(workers) if workers else None

    def _spawn(self) -> None:
        number = next(self._numbers)
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(f"{number}\n")
        self._nursery.stdin.flush()
        self._workers.append(Worker(number, int(self._nursery.stdout.readline())))

    def _kill(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _try(self, work: Callable[[], _T]) -> _T:
        """Do something in the database, again while that is away or busy.

        Everything that is tried so is safe to repeat when the answer to a commit was lost.
        """
        end = time.monotonic() + 60
        while True:
            try:
                return work()
            except (DatabaseError, InterfaceError, TransactionManagementError):
                if time.monotonic() > end:
                    raise
                connection.close()
                for worker in self._workers:  # one that holds a lock may be what we wait for
                    self._let_go_on(worker, _state(worker.pid))
                time.sleep(0.1)

    def _let_go_on(self, worker: Worker, state: str) -> None:
        """End a pause when its time has come."""
        now = time.monotonic()
        if state == "T" and worker.paused_until == 0:
            worker.paused_until = now + LEASE_SECONDS + self._dice.uniform(0.1, 1)  # it stopped itself
        elif worker.paused_until and now >= worker.paused_until:
            worker.paused_until = 0
            self._kill(worker.pid, signal.SIGCONT)


def _state(pid: int) -> str:
    """Return the process's state letter, or nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return ""
