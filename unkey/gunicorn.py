"""Gunicorn's configuration, from our settings: `gunicorn -c python:unkey.gunicorn unkey.wsgi`."""

from gunicorn import glogging

from unkey import logging
from unkey.complaints import in_one_line
from unkey.env import env


class Logger(glogging.Logger):
    """Puts no access line together: web writes its own for each request."""

    @property
    def access_log_enabled(self) -> bool:
        return False


with in_one_line():
    # In the parent: a worker would only be started again and again.
    import unkey.settings  # noqa: F401

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
logger_class = Logger
# Its default place is one for all systems of a user.
control_socket_disable = True
logconfig_dict = logging.settings()
