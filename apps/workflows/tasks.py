"""Celery entry points: wake-ups in, a dispatcher in every worker process, periodic sweeps and pruning."""

from datetime import timedelta
from typing import Any

import structlog
from celery.signals import celeryd_after_setup, worker_shutdown, worker_shutting_down

from apps.workflows import history, metrics, sweeper, wakeups
from apps.workflows.driver import Driver
from apps.workflows.due import due_keys
from apps.workflows.models import WorkflowRun
from unkey.celery import app
from unkey.env import env

log = structlog.get_logger("workflows")

_dispatcher: sweeper.Dispatcher | None = None


@app.task(name=wakeups.TASK, ignore_result=True)
def drive(key: str) -> None:
    """Wake a key: the message is done at once, so that no step outlives a time-out of the broker."""
    if _dispatcher is None:
        Driver().drive(key)
    else:
        _dispatcher.wake(key)


@app.task(name="workflows.sweep", ignore_result=True)
def sweep() -> None:
    """Wake every key that has something due: for workers whose own sweeper has died."""
    keys = due_keys()
    queues = dict(WorkflowRun.objects.filter(key__in=keys, next_at__isnull=False).values_list("key", "queue"))
    for key in keys:
        if key in queues:
            wakeups.send(key, queues[key])


@app.task(name="workflows.prune", ignore_result=True)
def prune() -> None:
    """Delete the history of runs that ended 30 days ago or earlier."""
    history.prune(timedelta(days=history.KEEP_DAYS))


@celeryd_after_setup.connect
def _start(instance: Any, **_kwargs: Any) -> None:
    """Begin to sweep before the broker is reached: runs go on without it."""
    global _dispatcher
    queues = list(instance.app.amqp.queues.consume_from)
    _dispatcher = sweeper.serve(queues, env.WORKER_CONCURRENCY)
    if env.WORKER_METRICS_PORT:
        try:
            metrics.serve(str(env.BIND), env.WORKER_METRICS_PORT)
        except (OSError, OverflowError) as error:  # runs matter more
            log.error("metrics are not served (WORKER_METRICS_PORT)", error=str(error))


@worker_shutting_down.connect
def _wind_down(**_kwargs: Any) -> None:
    if _dispatcher is not None:
        _dispatcher.wind_down()


@worker_shutdown.connect
def _stop(**_kwargs: Any) -> None:
    if _dispatcher is not None:
        _dispatcher.stop()
