"""The connection: a transaction is one statement to begin it, and a look at the socket says that it is open."""

import select

from django.db.backends.mysql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's, with what it asks the server about each request and each transaction left out."""

    def _start_transaction_under_autocommit(self) -> None:
        # Django's own way is `SET autocommit = 0` before and `= 1` after each transaction.
        with self.cursor() as cursor:
            cursor.execute("START TRANSACTION")

    def is_usable(self) -> bool:
        """Say whether the connection is open, asking the server only where its socket has something to tell.

        A server that stops closes its connections; with no request under way, it has nothing else to send.
        """
        if self.connection is None:
            return False
        told = select.poll()
        told.register(self.connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(super().is_usable()) if told.poll(0) else True
