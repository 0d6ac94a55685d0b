"""A worker process without Celery, for tests that kill and pause it: `python -m apps.workflows.tests.worker`."""

import os
import sys
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")
django.setup()

from apps.workflows.sweeper import serve  # noqa: E402
from apps.workflows.tests import flows  # noqa: E402, F401

serve(None, threads=int(sys.argv[1]))
print("ready", flush=True)
while True:
    time.sleep(1)
