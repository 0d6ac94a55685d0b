"""Leases of outside parts, renewed by one thread per process for as long as the part runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog
from django.db import DatabaseError, connections

from apps.workflows.models import WorkflowKey
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
    """Renews the leases that are being kept, a third of their length apart.

    The thread starts with the first lease that is kept and has its own connection; a step that is
    shorter than the interval never costs a renewal.
    """

    def __init__(self) -> None:
        self._kept: set[Lease] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[None]:
        """Renew the lease in the background while the block runs."""
        with self._changed:
            self._kept.add(lease)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="workflow-leases", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._kept.discard(lease)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait(lease_time().total_seconds() / 3)
                    if not self._kept:
                        self._thread = None
                        return
                    kept = list(self._kept)
                for lease in kept:
                    self._renew(lease)
        finally:
            connections.close_all()

    def _renew(self, lease: Lease) -> None:
        try:
            renewed = WorkflowKey.objects.filter(
                key=lease.key, epoch=lease.epoch, lease_expires_at__isnull=False
            ).update(lease_expires_at=clock.now() + lease_time())
        except DatabaseError as error:
            log.warning("lease not renewed", run_id=lease.run_id, step=lease.step, error=str(error))
            connections["default"].close()
            return
        if not renewed:
            log.warning("lease lost", run_id=lease.run_id, step=lease.step, key=lease.key, epoch=lease.epoch)


keeper = Keeper()
