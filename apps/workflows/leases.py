"""Leases of outside parts, renewed by one thread per process for as long as the parts run."""

import threading
from dataclasses import dataclass
from datetime import timedelta

import structlog
from django.db import DatabaseError, connections

from apps.workflows import rows
from apps.workflows.transactions import in_transaction
from unkey import clock
from unkey.env import env

log = structlog.get_logger("workflows")


def lease_time() -> timedelta:
    """How long a lease lasts without being renewed."""
    return timedelta(seconds=env.WORKFLOW_LEASE_SECONDS)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to commit an outside part's outcome: good while the key's epoch is this one."""

    key: str
    epoch: int
    run_id: str
    step: str


class Keeper:
    """Renews the leases that are being kept, a third of their length apart, in one transaction.

    The thread starts with the first lease that is kept and has its own connection; a step that is
    shorter than the interval never costs a renewal.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Lease] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def keep(self, lease: Lease) -> None:
        """Renew the lease in the background until it is released."""
        with self._changed:
            self._kept[lease.key, lease.epoch] = lease
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="workflow-leases", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads: the next lease tries again
                    log.error("a thread that renews leases cannot be started", error=str(error))
                else:
                    self._thread = thread

    def release(self, lease: Lease) -> None:
        """Renew it no longer; a lease that was taken for a later step of the same run stays kept."""
        with self._changed:
            if self._kept.get((lease.key, lease.epoch)) == lease:
                del self._kept[lease.key, lease.epoch]

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait(lease_time().total_seconds() / 3)
                    if not self._kept:
                        self._thread = None
                        return
                    kept = list(self._kept)
                self._renew(kept)
        finally:
            connections.close_all()

    def _renew(self, kept: list[tuple[str, int]]) -> None:
        try:
            lost = in_transaction(lambda: rows.renew_leases(kept, clock.now() + lease_time()))
        except DatabaseError as error:
            log.warning("leases not renewed", leases=len(kept), error=str(error))
            connections["default"].close()
            return
        for key, epoch in lost:
            with self._changed:
                lease = self._kept.get((key, epoch))
            if lease is not None:
                log.warning("lease lost", run_id=lease.run_id, step=lease.step, key=key, epoch=epoch)


keeper = Keeper()
