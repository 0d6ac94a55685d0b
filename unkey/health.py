"""Health and metrics of web and feed.

`live`: the process answers. `ready`: what it cannot do without answers, too. `startup`: the schema is
the one that this code was written for.
"""

from collections.abc import Callable

from django.db import DatabaseError, InterfaceError, OperationalError, ProgrammingError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from unkey.database import NOT_PREPARED, lacks_schema
from unkey.tokens import bears_agent_token

_startup_done = False


def live(_request: HttpRequest) -> JsonResponse:
    """Answer 200 as long as the process answers at all."""
    return JsonResponse({"status": "ok"})


def ready(_request: HttpRequest) -> JsonResponse:
    """Answer 200 when the database does, else 503."""
    return _answer(_database_answers)


def startup(_request: HttpRequest) -> JsonResponse:
    """Answer 200 once every migration is applied, else 503; the good answer is remembered."""
    return _answer(_schema_fits)


def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus metrics, for bearers of AGENT_TOKEN."""
    if not bears_agent_token(request.headers.get("Authorization", "")):
        return HttpResponse("bearer AGENT_TOKEN needed\n", status=401, content_type="text/plain")
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


urlpatterns = [path("metrics", metrics)]

PROBES = {"/health/live": live, "/health/ready": ready, "/health/startup": startup}
"""Answered before any other middleware: probes come by address, whatever ALLOWED_HOSTS says."""


def outage(error: BaseException) -> str | None:
    """Return what a caller is told of an error that means that the database is of no use now; None for others."""
    if isinstance(error, OperationalError | ProgrammingError) and lacks_schema(error):
        return NOT_PREPARED
    if isinstance(error, OperationalError | InterfaceError):
        return "The database does not answer at the moment. Please try again."
    return None


def missing_migrations() -> int:
    """Return how many migrations of this code the database lacks.

    Raises:
        DatabaseError: it does not answer.
    """
    executor = MigrationExecutor(connection)
    return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def _answer(check: Callable[[], str]) -> JsonResponse:
    try:
        fault = check()
    except DatabaseError as error:
        connection.close()
        fault = f"database: {type(error).__name__}"
    if fault:
        return JsonResponse({"status": "unavailable", "reason": fault}, status=503)
    return JsonResponse({"status": "ok"})


def _database_answers() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return ""


def _schema_fits() -> str:
    global _startup_done
    if not _startup_done:
        if missing := missing_migrations():
            return f"{missing} migrations are not applied: run `python manage.py prepare`"
        _startup_done = True
    return ""
