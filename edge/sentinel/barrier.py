"""What is refused before every deployment of an environment: blocked addresses, and all during maintenance."""

from edge.sentinel.iprules import Addresses, read_address
from edge.store.records import Barrier as Record
from unkey.errors import AddressDenied, Fault, InvalidConfiguration, UnderMaintenance

_REMEMBERED = 10_000
_MESSAGE = "This site is being worked on. Please come back in a while."


class Barrier:
    """A compiled barrier.

    Args:
        record: as the store has it; what cannot be understood refuses everybody.
    """

    def __init__(self, record: Record) -> None:
        self._known: dict[bytes, Fault | None] = {}
        self._broken = ""
        self._closed: Fault | None = None
        if record.maintenance:
            headers = {} if record.retry_after is None else {"Retry-After": str(record.retry_after)}
            self._closed = UnderMaintenance(record.message or _MESSAGE, headers=headers)
        try:
            self._blocked = Addresses(record.blocked)
            self._exempt = Addresses(record.exempt)
        except ValueError as error:
            self._broken = f"The environment's blocked addresses cannot be evaluated: {error}."

    def refuse(self, peer: bytes) -> Fault | None:
        """Return why a client is refused, None if it is not."""
        if peer in self._known:
            return self._known[peer]
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        fault = self._known[peer] = self._judge(peer)
        return fault

    def _judge(self, peer: bytes) -> Fault | None:
        if self._broken:
            return InvalidConfiguration(self._broken)
        address = read_address(peer)
        if self._blocked and (address is None or address in self._blocked):
            return AddressDenied("Requests from this address are not allowed.")
        return None if address is not None and address in self._exempt else self._closed
