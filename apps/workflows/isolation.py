"""Keeps the parts of one transaction apart: a part of user code that fails takes nothing else with it.

Statements of user code pass here. Before the first one what the engine has recorded so far is
written, so that user code sees it, and a savepoint is made, to go back to if the part fails: a part
that asks the database nothing costs neither.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from apps.workflows.transactions import is_away, is_contention


class RolledBack(Exception):
    """A recording part asked for its transaction to be rolled back without raising."""


class Isolation:
    """Guards one transaction; every statement of its connection passes through while it is open.

    Args:
        write: writes what the engine has recorded and not yet written.

    Attributes:
        touched: user code has made statements since this was last set to False.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._connection: Any = connections[DEFAULT_DB_ALIAS]
        self._own = False
        self._inside = False
        self._savepoint: Any = None
        self._broken: Exception | None = None
        self._stack = ExitStack()
        self.touched = False

    def __enter__(self) -> "Isolation":
        self._stack.enter_context(self._connection.execute_wrapper(self._statement))
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Let the engine's own statements pass as they are."""
        before, self._own = self._own, True
        try:
            yield
        finally:
            self._own = before

    @contextmanager
    def part(self) -> Iterator[None]:
        """Run one part of user code: its effects stay if the block ends, and are gone if it raises."""
        database = self._connection
        hooks = len(database.run_on_commit)
        self._inside, self._savepoint = True, None
        try:
            yield
            self.check()
            if database.needs_rollback:
                raise RolledBack("the recording part rolled its transaction back; raise an error instead")
        except Exception:
            self._inside = False
            self.check()
            if self._savepoint is not None:
                transaction.set_rollback(False)
                with self.own():
                    transaction.savepoint_rollback(self._savepoint)
                    transaction.savepoint_commit(self._savepoint)
            del database.run_on_commit[hooks:]
            raise
        self._inside = False
        if self._savepoint is not None:
            with self.own():
                transaction.savepoint_commit(self._savepoint)
        # A hook of one part that raises must not keep those of the others from running.
        waiting: list[Any] = database.run_on_commit
        waiting[hooks:] = [(savepoints, hook, True) for savepoints, hook, _ in waiting[hooks:]]

    def check(self) -> None:
        """Raise what broke the transaction as a whole, even if user code has swallowed it.

        Raises:
            DatabaseError: a deadlock, a lock that was not had in time, a connection that is gone.
        """
        if self._broken is not None:
            raise self._broken

    def _statement(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        try:
            if not self._own:
                with self.own():
                    self._write()
                    if self._inside and self._savepoint is None:
                        self._savepoint = transaction.savepoint()
                self.touched = True
            return execute(sql, params, many, context)
        except Exception as error:
            if is_contention(error) or is_away(error):
                self._broken = error
            raise
