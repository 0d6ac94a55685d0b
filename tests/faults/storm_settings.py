"""The environment of the harness and its workers, set before Django is."""

from pathlib import Path

LEASE_SECONDS = 2


def environment(room: Path, database_url: str) -> dict[str, str]:
    """Return the variables for a room and a database."""
    return {
        "DJANGO_SETTINGS_MODULE": "unkey.settings",
        "UNKEY_VAR": str(room / "var"),
        "DATABASE_URL": database_url,
        "CELERY_BROKER_URL": f"filesystem://{room}/broker",
        "WORKFLOW_LEASE_SECONDS": str(LEASE_SECONDS),
        "WORKER_CONCURRENCY": "4",
        "FAULTS_ROOM": str(room),
    }
