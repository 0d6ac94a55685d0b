"""`python -m tests.faults`: lets faults fall on the workflow engine and checks what is left.

    python -m tests.faults --workflows 200 --faults 500 --database mariadb [--seed 7]

The seed decides the scripts of the workflows, the faults and their order; the moments at which they fall
are the machine's. Exit status 1 when a guarantee was broken: the room is then kept.
"""

import argparse
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.servers import Database


def main() -> int:
    """Run one storm on each database."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Lets faults fall on the workflow engine and checks what is left.",
    )
    parser.add_argument("--workflows", type=int, default=200, help="runs to start (children come on top)")
    parser.add_argument("--faults", type=int, default=500, help="faults to let fall")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument(
        "--database",
        default="sqlite",
        help="sqlite, mariadb (a server of its own, which is killed and restarted too), or an empty one's URL",
    )
    parser.add_argument("--keep", action="store_true", help="keep the room: database, ledger, logs")
    options = parser.parse_args()
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    room = Path(tempfile.mkdtemp(prefix="unkey-faults-"))
    room.chmod(0o755)
    from tests.faults.servers import open_database

    database = open_database(options.database, room)
    broken = True
    try:
        broken = _storm(room, database, seed, options.workflows, options.faults)
        return int(broken)
    finally:
        database.stop()
        if broken or options.keep:
            print(f"kept: {room}")
        else:
            shutil.rmtree(room)


def _storm(room: Path, database: "Database", seed: int, workflows: int, faults: int) -> bool:
    from tests.faults.storm_settings import environment

    os.environ.update(environment(room, database.url))
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from tests.faults import flows, model
    from tests.faults.storm import Storm

    name = connection.vendor
    print(f"seed {seed}: {workflows} workflows, {faults} faults, on {name}", flush=True)
    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        for statement in flows.TABLES[name]:
            cursor.execute(statement)
    began = time.monotonic()
    storm = Storm(
        room,
        database,
        seed=seed,
        workflows=workflows,
        faults=faults,
        say=lambda text: print(f"  {time.monotonic() - began:5.0f} s  {text}", flush=True),
    )
    account = storm.blow()
    history = model.read_history(room)
    found = model.violations(history, account)
    points = sum(2 if ".outside." in place else 1 for place in flows.places())
    print(f"faults: {account.faults.total()} {json.dumps(dict(sorted(account.faults.items())))}")
    print(f"checked: {json.dumps(history.counts())}")
    print(
        f"cancels {sum(each.cancel_asked for each in account.started)}, rolled back "
        f"{sum(each.run_id is None for each in account.started)}, resumed by an operator {account.resumed}, "
        f"clock of the future needed: {account.needed_later_clock}, "
        f"points without a fault {account.unreached} of {points}, {time.monotonic() - began:.0f} s"
    )
    for complaint in found:
        print(f"VIOLATION {complaint}")
    print(
        f"seed {seed} on {name}: {len(found)} violations" if found else f"seed {seed} on {name}: no violation"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
