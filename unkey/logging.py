"""Structured logs: one line of JSON or text per event, with its context, and without secrets.

    logging.configure("edge")               # once per process; Django's processes do it in settings
    log = structlog.get_logger()
    structlog.contextvars.bind_contextvars(request_id="req_…", workspace_id="ws_…")
    log.info("route.switched", deployment_id="d_…")

Names of context, the same everywhere: request_id, workspace_id, project_id, deployment_id, run_id, region.
"""

import logging
import logging.config
import os
import re
from collections.abc import MutableMapping
from typing import Any

import structlog

from unkey.env import env

HIDDEN = "[hidden]"
_SECRET_NAMES = re.compile(
    r"^(authorization|cookie|set-cookie)$|password|passwd|secret|token$|plaintext|private_?key"
    r"|(root|api|master)_?key$|^variables$",
    re.IGNORECASE,
)
# Root keys, bearer headers, and passwords inside URLs, wherever they stand in a text. Each begins with what few
# texts have, so that a long one is looked through once: a pattern for a URL's scheme would scan from every letter.
_SECRET_TEXT = re.compile(
    r"(?P<root>unkey_)[1-9A-HJ-NP-Za-km-z]{20,}"
    r"|(?P<bearer>bearer\s+)[^\s\"',;]+"
    r"|(?P<url>://[^\s:/@]*:)[^\s/@]+(?=@)",
    re.IGNORECASE,
)

Event = MutableMapping[str, Any]


def redact(_logger: Any, _method: str, event: Event) -> Event:
    """Hide values under telling names, and what looks like a secret in any text, at every depth."""
    return {name: _clean(name, value) for name, value in event.items()}


def _clean(name: str, value: Any) -> Any:
    if isinstance(value, (str, bytes)) or value is None:
        if value and _SECRET_NAMES.search(name):
            return HIDDEN
        return _SECRET_TEXT.sub(_keep_prefix, value) if isinstance(value, str) else value
    if isinstance(value, dict):
        if _SECRET_NAMES.search(name):
            return HIDDEN
        return {key: _clean(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(name, item) for item in value]
    return value


def _keep_prefix(match: re.Match[str]) -> str:
    return next(part for part in match.groups() if part is not None) + HIDDEN


def settings(process: str | None = None, *, stream: str = "ext://sys.stdout") -> dict[str, Any]:
    """Return the `logging.config.dictConfig` dictionary: everything through one formatter, to `stream`.

    Args:
        process: name of the process, on every JSON line; None: what the supervisor calls it, if any.
    """
    process = process or os.environ.get("UNKEY_PROCESS")
    json = env.LOG_FORMAT == "json"
    shared = _shared(process if json else None)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        # `up` puts its own colours in front of each line.
        else structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    )
    level = str(env.LOG_LEVEL).upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "unkey": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": shared,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    redact,
                    renderer,
                ],
            }
        },
        "handlers": {"out": {"class": "logging.StreamHandler", "stream": stream, "formatter": "unkey"}},
        "root": {"handlers": ["out"], "level": level},
        "loggers": {
            # These would otherwise print through handlers of their own, or at every poll.
            "django": {"level": level, "propagate": True, "handlers": []},
            "django.server": {"propagate": True, "handlers": []},
            "django.request": {"level": "ERROR"},
            "httpx": {"level": "WARNING"},
            "httpcore": {"level": "WARNING"},
            "kombu": {"level": "WARNING"},
            "amqp": {"level": "WARNING"},
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "celery.beat": {"level": "WARNING"},
            "uvicorn.access": {"level": "WARNING"},
            "uvicorn": {"handlers": [], "propagate": True},
            "gunicorn.error": {"handlers": [], "propagate": True},
            "gunicorn.access": {"level": "WARNING"},
        },
    }


def configure(process: str | None = None) -> None:
    """Set up this process's logging; used by processes without Django."""
    logging.config.dictConfig(settings(process))
    configure_structlog(process)


def configure_structlog(process: str | None = None) -> None:
    """Send structlog's events through the standard library's handlers."""
    process = process or os.environ.get("UNKEY_PROCESS")
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(process if env.LOG_FORMAT == "json" else None),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _shared(process: str | None) -> list[Any]:
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _drop_noise,
    ]
    if process:
        shared.insert(0, _named(process))
    return shared


def _drop_noise(_logger: Any, _method: str, event: Event) -> Event:
    """Remove what libraries attach to their records for consoles of their own."""
    for name in ("color_message", "taskName", "request"):
        event.pop(name, None)
    return event


def _named(process: str) -> Any:
    def add(_logger: Any, _method: str, event: Event) -> Event:
        event.setdefault("process", process)
        return event

    return add
