"""ClickHouse in a process of its own: reads one JSON line per query, answers one; ends when idle.

A program by itself, run by path: it imports neither Django nor this project. A query that takes too long,
needs too much memory, or breaks the engine costs this process and nobody else.
"""

import json
import os
import select
import sys
from typing import Any

IDLE_SECONDS = 300


def main() -> None:
    """Answer until the input ends, or nothing has been asked for five minutes."""
    os.nice(5)
    # What the engine itself prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from chdb import session  # type: ignore[import-not-found, import-untyped, unused-ignore]

    engine = session.Session()
    prepared: list[str] = []
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        request: dict[str, Any] = json.loads(line)
        try:
            if request["prepare"] != prepared:
                prepared = []
                for statement in request["prepare"]:
                    engine.query(statement)
                prepared = request["prepare"]
            rows = engine.query(request["sql"], "JSONEachRow").bytes()
            # The engine's own limit does not see how often a constant is repeated.
            too_large = {"error": "Code: 396. result bytes"}
            answer = too_large if len(rows) > request["most_bytes"] else {"rows": rows.decode()}
        except Exception as error:
            answer = {"error": str(error)[:2000]}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
