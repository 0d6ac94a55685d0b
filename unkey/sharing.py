"""Work that shares one transaction with other work, and the one thing that it must not do there.

A transaction that takes locks in an order of its own can wait for another one for ever. Work that has its
transaction to itself knows its order; pieces of work that were put together do not know of each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_shared: ContextVar[bool] = ContextVar("shared_transaction", default=False)


class OutOfOrder(RuntimeError):
    """Locks were asked for in an order that can deadlock; in a shared transaction: do the work apart."""


@contextmanager
def shared_transaction(shared: bool) -> Iterator[None]:
    """Say whether the work of the block shares its transaction with other work."""
    token = _shared.set(shared)
    try:
        yield
    finally:
        _shared.reset(token)


def is_shared() -> bool:
    """Say whether the running work shares its transaction."""
    return _shared.get()
