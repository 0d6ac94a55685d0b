"""The embedded broker: Celery messages as files in one folder, for a machine without Redis.

Kombu's filesystem transport writes messages and its table of queues in place, so that a reader may
see half of one and a full disk leaves half of one behind. Here both appear by renaming. A message
that a worker took and did not live to finish is lost; the engine's sweeper covers that.
"""

import fcntl
import os
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any
from urllib.parse import unquote, urlsplit

from kombu.exceptions import ChannelError
from kombu.transport import TRANSPORT_ALIASES, filesystem, virtual
from kombu.utils.json import dumps, loads

from unkey.env import BadSetting
from unkey.keyfiles import private_folder

SCHEME = "folder"
TRANSPORT_ALIASES[SCHEME] = "unkey.broker:Transport"

POLL_SECONDS = 0.05
_LOCK = ".lock"


def celery_settings(url: str) -> dict[str, Any]:
    """Return Celery's broker settings for CELERY_BROKER_URL.

    `filesystem://folder` makes the folder and selects this transport; every other URL (redis://,
    amqp://) is Celery's own business.

    Raises:
        BadSetting: a filesystem URL lacks the folder.
    """
    parts = urlsplit(url)
    if parts.scheme != "filesystem":
        # A publisher gives up after one more try: it stands in somebody's request.
        options: dict[str, Any] = {"max_retries": 1, "interval_start": 0.05, "interval_max": 0.05}
        if parts.scheme in {"redis", "rediss"}:
            # Redis redelivers what nobody acknowledged after this many seconds; steps are far shorter.
            options["visibility_timeout"] = 3600
            # One that takes connections and does not answer is as good as none; a pop that blocks ends in 1 s.
            options |= {"socket_connect_timeout": 2, "socket_timeout": 10, "socket_keepalive": True}
        return {"broker_url": url, "broker_transport_options": options}
    folder = unquote(f"{parts.netloc}{parts.path}")
    if not folder.strip("/"):
        raise BadSetting("CELERY_BROKER_URL lacks the folder: filesystem:///absolute/folder")
    for name in ("messages", "taken", "control"):
        private_folder(Path(folder) / name)
    return {
        "broker_url": f"{SCHEME}://localhost//",
        "broker_transport_options": {
            "data_folder_in": f"{folder}/messages",
            "data_folder_out": f"{folder}/messages",
            "processed_folder": f"{folder}/taken",
            "control_folder": f"{folder}/control",
            "polling_interval": POLL_SECONDS,
        },
    }


def require_writable(options: dict[str, Any]) -> None:
    """Check that messages can be taken and left; brokers other than a folder are Celery's own business.

    Args:
        options: transport options, as `celery_settings` makes them.

    Raises:
        OSError: the folder cannot be written.
    """
    if "control_folder" in options:
        Path(options["control_folder"], _LOCK).touch()


class Channel(filesystem.Channel):
    """Kombu's channel, with writes that appear whole or not at all."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]
        folder = self.data_folder_out
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        # The draft has no queue in its name, so no reader looks at it.
        _write_whole(Path(folder) / f".{name}", Path(folder) / f"{name}.{queue}.msg", dumps(payload))

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        folder, taken = Path(self.data_folder_in), Path(self.processed_folder)
        suffix = f"{queue}.msg"
        for name in sorted(entry for entry in os.listdir(folder) if entry.partition(".")[2] == suffix):
            try:
                os.rename(folder / name, taken / name)
            except FileNotFoundError:
                continue  # another worker was faster
            text = (taken / name).read_text()
            os.unlink(taken / name)
            return loads(text)
        raise Empty

    def _queue_bind(self, exchange: str, routing_key: str | None, pattern: str | None, queue: str) -> None:
        file = self.control_folder / f"{exchange}.exchange"
        binding = filesystem.exchange_queue_t(routing_key or "", pattern or "", queue or "")
        with open(self.control_folder / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            bindings = self.get_table(exchange)
            if binding not in bindings:
                _write_whole(file.with_name(f".{file.name}"), file, dumps([binding, *bindings]))


class Transport(filesystem.Transport):
    """What `folder://` stands for in a broker URL."""

    Channel = Channel
    driver_type = "folder"
    driver_name = "folder"

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        # Kombu remembers bindings for the whole process, though each folder has its own.
        self.state = virtual.BrokerState()


def _write_whole(draft: Path, path: Path, text: str) -> None:
    try:
        draft.write_text(text)
        os.rename(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ChannelError(f"cannot write {path}: {error.strerror}") from error
