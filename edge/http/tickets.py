"""TLS sessions that any process of a machine resumes: one key for the tickets of all, changed twice a day.

A ticket (RFC 5077; RFC 8446, 4.6.1) is the session itself, encrypted by a key that OpenSSL makes for each
context. Clients come back to whichever process the kernel chooses, and would mostly begin from the start.
"""

import _ssl
import asyncio
import ctypes
import logging
import os
import secrets
import ssl
import sys
import time
from pathlib import Path

log = logging.getLogger(__name__)

LIFETIME_SECONDS = 12 * 3600
_KEY_BYTES = 80  # a name of 16, and 32 each to sign and to encrypt with, as OpenSSL cuts them
_GET_KEYS, _SET_KEYS = 58, 59  # SSL_CTRL_GET_TLSEXT_TICKET_KEYS and SSL_CTRL_SET_TLSEXT_TICKET_KEYS


class TicketKeys:
    """The key of the present half day, in a file that only this user can read.

    Whoever needs it first makes it; those of earlier half days are removed, and with them the means to
    read what was recorded of their sessions.

    Args:
        folder: the processes' own, on the machine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, context: ssl.SSLContext) -> None:
        """Use the key in a listener's context from now on, and each one that follows; `stop` ends that."""
        now = time.time()
        try:
            if not use(context, self.at(now)):
                return log.warning("TLS sessions are resumed by the process alone that began them")
        except OSError as error:
            log.warning("the key of TLS sessions cannot be shared", extra={"reason": str(error)})
        until = LIFETIME_SECONDS - now % LIFETIME_SECONDS
        self._timer = asyncio.get_running_loop().call_later(until + 1, self.keep, context)

    def stop(self) -> None:
        """Change the key no more."""
        if self._timer is not None:
            self._timer.cancel()

    def at(self, seconds: float) -> bytes:
        """Return the key of a time (Unix seconds), the same to every process that asks.

        Raises:
            OSError: the folder cannot be written to.
        """
        number = int(seconds // LIFETIME_SECONDS)
        path = self._folder / f"tickets-{number}"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(2):
            try:
                key = path.read_bytes()
            except FileNotFoundError:
                self._make(path)
                continue
            if len(key) == _KEY_BYTES:
                self._forget(number)
                return key
            path.unlink(missing_ok=True)  # a full disk may cut a file short
            self._make(path)
        return path.read_bytes()

    def _make(self, path: Path) -> None:
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            os.link(draft, path)  # the first one wins; nobody sees half of it
        except FileExistsError:
            pass
        finally:
            draft.unlink()

    def _forget(self, number: int) -> None:
        for path in self._folder.glob("tickets-*"):
            if path.name.removeprefix("tickets-").isdigit() and int(path.name[8:]) < number:
                path.unlink(missing_ok=True)


def use(context: ssl.SSLContext, key: bytes) -> bool:
    """Encrypt a context's tickets by a key; False: this build of Python gives no access to it.

    Python's binding has no name for it, so that OpenSSL itself is asked, by the address that a context object
    begins with. The options that are found there must be the context's own, or nothing is touched.
    """
    if sys.implementation.name != "cpython" or len(key) != _KEY_BYTES:
        return False
    try:
        library = ctypes.CDLL(_ssl.__file__)
        options, control = library.SSL_CTX_get_options, library.SSL_CTX_ctrl
    except (AttributeError, OSError):  # OpenSSL is part of the interpreter, and keeps its names to itself
        return False
    options.argtypes, options.restype = [ctypes.c_void_p], ctypes.c_uint64
    control.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
    control.restype = ctypes.c_long
    address = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    if not address or options(address) != int(context.options):
        return False
    held = ctypes.create_string_buffer(_KEY_BYTES)
    return bool(
        control(address, _SET_KEYS, _KEY_BYTES, key) == 1
        and control(address, _GET_KEYS, _KEY_BYTES, held) == 1
        and held.raw == key
    )
