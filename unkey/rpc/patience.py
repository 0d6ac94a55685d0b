"""How long a body may take to arrive: whoever sends slower is cut off, and holds no thread any longer."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_TICK_SECONDS = 0.25


class Patience:
    """Shuts the reading side of sockets whose time is up; the reader then meets the end of its input.

    A time-out of the socket would not do: it starts anew with every octet. One thread watches all, and is
    started by the first that is to be watched.
    """

    def __init__(self) -> None:
        self._watched: dict[int, tuple[float, socket.socket]] = {}
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def reading(self, peer: socket.socket | None, seconds: float) -> Iterator["Wait"]:
        """Watch a socket while its body is read.

        Args:
            peer: None where the server does not give it away; then nothing is cut off.
            seconds: how long the whole of it may take.
        """
        wait = Wait(time.monotonic() + seconds)
        if peer is None:
            yield wait
            return
        if self._thread is None:
            self._begin()
        self._watched[id(wait)] = (wait.until, peer)
        try:
            yield wait
        finally:
            self._watched.pop(id(wait), None)

    def _begin(self) -> None:
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="patience", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            now = time.monotonic()
            for mark, (until, peer) in list(self._watched.items()):
                if now >= until and self._watched.pop(mark, None) is not None:
                    try:
                        peer.shutdown(socket.SHUT_RD)
                    except OSError:
                        continue  # it was closed a moment ago


class Wait:
    """A body that is being read: whether its time is up."""

    def __init__(self, until: float) -> None:
        self.until = until

    @property
    def over(self) -> bool:
        """Whether the body took longer than it might."""
        return time.monotonic() >= self.until


patience = Patience()
