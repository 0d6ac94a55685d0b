"""Gunicorn's configuration, from our settings: `gunicorn -c python:unkey.gunicorn unkey.wsgi`."""

from unkey import logging
from unkey.env import env

bind = f"{env.BIND}:{env.WEB_PORT}" if ":" not in env.BIND else f"[{env.BIND}]:{env.WEB_PORT}"
worker_class = "gthread"
workers = env.WEB_WORKERS
threads = env.WEB_THREADS
keepalive = 30
timeout = 60
graceful_timeout = 5
# Heartbeats of workers are files: in memory, since a slow disk would look like a dead worker.
worker_tmp_dir = "/dev/shm"  # noqa: S108
accesslog = None
# Its default place is one for all systems of a user.
control_socket_disable = True
logconfig_dict = logging.settings()
