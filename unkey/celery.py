"""The Celery application: carries wake-ups; the database holds the truth."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")

app = Celery("unkey")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
