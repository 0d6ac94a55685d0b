"""The Celery application: carries wake-ups; the database holds the truth."""

import os
import warnings
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import beat_init, setup_logging, worker_ready

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")

# Celery warns root of pickled messages; only JSON is accepted here.
warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")

app = Celery("unkey")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def _keep_logging(**_kwargs: Any) -> None:
    """Leave logging as Django's settings made it: connecting to this signal is what stops Celery."""


@worker_ready.connect
@beat_init.connect
def _say_ready(**_kwargs: Any) -> None:
    """Tell the supervisor, which names the file, that messages are being taken from now on."""
    if file := os.environ.get("UNKEY_READY_FILE"):
        Path(file).touch()
