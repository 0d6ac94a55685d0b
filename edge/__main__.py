"""`python -m edge`: one process of the data plane, until SIGTERM or SIGINT.

Exit status: 0 after a clean stop, 1 if it could not start or go on, 2 for a setting that cannot be used.
"""

import asyncio
import gc
import signal
import sys

import structlog
import uvloop

from unkey import logging
from unkey.database import database
from unkey.env import BadSetting, env


async def _run() -> int:
    from edge.frontline.roles import CannotListen, Edge

    log = structlog.get_logger("edge")
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        edge = Edge(env)
        await edge.start()
    except (CannotListen, OSError) as error:
        log.error("edge.cannot_start", reason=str(error))
        return 1
    # What start-up made lives as long as the process: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    # Requests leave no cycles behind, so that looking for them often only costs time.
    gc.set_threshold(20_000, 50, 50)
    asked = loop.create_task(stopping.wait())
    broken = loop.create_task(edge.store.broken.wait())
    await asyncio.wait((asked, broken), return_when=asyncio.FIRST_COMPLETED)
    failed = not asked.done()
    if failed:
        log.error("edge.cannot_go_on", reason="a background task has ended")
    asked.cancel()
    broken.cancel()
    await edge.stop()
    return 1 if failed else 0


def main() -> int:
    """Run the edge; return its exit status."""
    logging.configure("edge")
    try:
        env.check()
        # The database may be away; a URL that cannot be one is a mistake.
        database(env.DATABASE_URL)
        if env.EDGE_ROLE == "sentinel":
            raise BadSetting("EDGE_ROLE: a sentinel runs together with frontline; use all, api or frontline")
        return uvloop.run(_run())
    except (BadSetting, ValueError) as error:
        structlog.get_logger("edge").error("edge.cannot_start", reason=str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
