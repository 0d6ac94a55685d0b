"""The Celery application: carries wake-ups; the database holds the truth."""

import os
import warnings
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import beat_init, setup_logging, worker_ready

from unkey.broker import require_writable
from unkey.complaints import in_one_line
from unkey.env import BadSetting

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")
# Django's checks import every page of web, which neither worker nor beat serves; `up` and `prepare` run them.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")

# Celery warns root of pickled messages; only JSON is accepted here.
warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")

app = Celery("unkey")
with in_one_line():
    app.config_from_object("django.conf:settings", namespace="CELERY", force=True)
app.autodiscover_tasks()


@setup_logging.connect
def _keep_logging(**_kwargs: Any) -> None:
    """Leave logging as Django's settings made it: connecting to this signal is what stops Celery.

    It is also the first thing that both worker and beat do. Later they go on without the database and
    wait for it; at the start, what is wrong is most likely a setting.
    """
    from django.db import connection

    from unkey import health

    with in_one_line():
        require_writable(app.conf.broker_transport_options)
        if missing := health.missing_migrations():
            raise BadSetting(
                f"{missing} migrations are not applied (DATABASE_URL): run `python manage.py prepare`"
            )
    connection.close()


@worker_ready.connect
@beat_init.connect
def _say_ready(**_kwargs: Any) -> None:
    """Tell the supervisor, which names the file, that messages are being taken from now on."""
    if file := os.environ.get("UNKEY_READY_FILE"):
        Path(file).touch()
