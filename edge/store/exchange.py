"""Counts of rate limits that machines share through Redis: what was counted is told, verdicts never are.

For each window of a counter there is a hash in Redis with one field for each process that counted in it:
`<machine>:<seat>` to what that process has counted. A process writes its own field, with a total that only
grows, so that telling it twice, late or again after an error changes nothing; and it reads the sum of the
other machines' fields. Its own machine's processes it sees directly (`edge.store.counters`).

Nobody waits for Redis: a check takes what is known, and every `ROUND_SECONDS` the counters that were asked
since are exchanged, some hundred in one script. While Redis is away each machine counts for itself.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Sequence

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from edge.store.counters import Counters
from edge.verify.limiter import Counter, Due, Limiter

log = structlog.get_logger("edge.store")

ROUND_SECONDS = 0.1
TIMEOUT_SECONDS = 0.5
_LONGEST_PAUSE = 5.0
_BATCH = 250
_BATCHES = 20

# Keys: for each counter its window and the one before. Arguments: machine, field, and for each counter the
# milliseconds to keep it and the counts of both windows. Returns what other machines counted of each key.
_SCRIPT = """
local machine, field = ARGV[1], ARGV[2]
local sums = {}
for index = 1, #KEYS do
  local first = 3 + math.floor((index - 1) / 2) * 3
  local keep, count = ARGV[first], ARGV[first + 2 - index % 2]
  local sum, mine = 0, 0
  local fields = redis.call('HGETALL', KEYS[index])
  for at = 1, #fields, 2 do
    if fields[at] == field then
      mine = tonumber(fields[at + 1])
    elseif string.sub(fields[at], 1, #machine) ~= machine then
      sum = sum + tonumber(fields[at + 1])
    end
  end
  if tonumber(count) > mine then
    redis.call('HSET', KEYS[index], field, count)
    redis.call('PEXPIRE', KEYS[index], keep)
  end
  sums[index] = sum
end
return sums
"""


class Exchange:
    """Exchanges the counts of one process with those of other machines.

    Args:
        url: `redis://…`.
        limiter: whose counts; made with `far`.
        seat: where the process counts on its machine; None: for itself.

    Attributes:
        exchanged: counters exchanged since start.
        failures: rounds that Redis did not answer.
    """

    def __init__(self, url: str, limiter: Limiter, seat: Counters | None) -> None:
        self.exchanged = 0
        self.failures = 0
        self._limiter = limiter
        machine = secrets.token_hex(8) if seat is None else seat.machine
        self._machine = f"{machine}:"
        self._field = f"{machine}:{0 if seat is None else seat.seat}"
        self._redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS, decode_responses=True
        )
        self._script = self._redis.register_script(_SCRIPT)

    async def run(self) -> None:
        """Exchange for ever; cancel it to stop."""
        pause = ROUND_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self.round()
            except (RedisError, OSError) as error:
                self.failures += 1
                if pause == ROUND_SECONDS:
                    log.warning("exchange.redis_gone", error=f"{type(error).__name__}: {error}")
                pause = min(max(pause * 2, ROUND_SECONDS), _LONGEST_PAUSE)
            else:
                if pause != ROUND_SECONDS:
                    log.info("exchange.redis_reached")
                pause = ROUND_SECONDS

    async def round(self) -> None:
        """Exchange what is due, up to some thousand counters; the rest is the next round's.

        Raises:
            RedisError, OSError: Redis did not answer; what was not exchanged is due again.
        """
        for _ in range(_BATCHES):
            batch = self._limiter.due(_BATCH)
            if not batch:
                return
            try:
                await self._exchange(batch)
            except BaseException:
                self._limiter.postpone(batch)
                raise

    async def close(self) -> None:
        """Tell what was counted last, and let go of Redis."""
        try:
            await self.round()
        except (RedisError, OSError) as error:
            log.warning("exchange.last_counts_not_told", error=f"{type(error).__name__}: {error}")
        await self._redis.aclose()

    async def _exchange(self, batch: Sequence[Due]) -> None:
        keys: list[str] = []
        told: list[str | int] = [self._machine, self._field]
        for counter, sequence, current, previous in batch:
            name = key_of(counter)
            keys += (f"{name}:{sequence}", f"{name}:{sequence - 1}")
            told += (3 * counter[3], current, previous)
        sums = await self._script(keys=keys, args=told)
        for index, (counter, sequence, _, _) in enumerate(batch):
            self._limiter.learn(counter, sequence, int(sums[2 * index]), int(sums[2 * index + 1]))
        self.exchanged += len(batch)


def key_of(counter: Counter) -> str:
    """Return the name that a counter has in Redis: a hash, since identifiers may be people's addresses."""
    name = "\0".join((*counter[:3], str(counter[3]))).encode("utf-8", "surrogatepass")
    return f"unkey:limit:{hashlib.blake2b(name, digest_size=16).hexdigest()}"
