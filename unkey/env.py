"""Settings: every one is an environment variable, typed, with a default and a line of explanation.

Pure Python, so that web, worker, edge, agent and the CLI read the same table:

    from unkey.env import env
    env.WEB_PORT            # 8080, or what the environment says

Reading a malformed value raises `BadSetting`, which names the variable and what it expects.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


EDGE_ROLES = ("api", "frontline", "sentinel")


class BadSetting(ValueError):
    """An environment variable holds what its type cannot be read from."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Args:
        name: the environment variable.
        kind: what it is, in words, for `manage.py settings --explain`.
        parse: text to value; raises ValueError.
        default: text, read by `parse`; `{var}` stands for the folder UNKEY_VAR.
        help: one line.
        secret: shown as set or not set, never its value.
    """

    name: str
    kind: str
    parse: Callable[[str], Any]
    default: str
    help: str
    secret: bool = False


def _flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise ValueError(text)
    return port


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e9:
        raise ValueError(text)
    return number


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return parse


def _roles(text: str) -> frozenset[str]:
    roles = frozenset(EDGE_ROLES if text == "all" else _names(text))
    if not roles or not roles <= set(EDGE_ROLES):
        raise ValueError(text)
    return roles


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(part) for part in _names(text))


def _nearest(text: str) -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for row in text.split(";"):
        if row.strip():
            region, equals, others = row.partition("=")
            if not equals or not region.strip() or not _names(others):
                raise ValueError(text)
            table[region.strip()] = _names(others)
    return table


def _bytes_of_hosts(text: str) -> dict[str, int]:
    table: dict[str, int] = {}
    for part in _names(text):
        host, equals, most = part.partition("=")
        if not equals or not host.strip():
            raise ValueError(text)
        table[host.strip().lower()] = _count(most)
    return table


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "UNKEY_VAR",
        "folder",
        _path,
        str(ROOT / "var"),
        "everything that is written: database, secrets, objects, logs, pids",
    ),
    Setting("DEBUG", "flag", _flag, "1", "development mode; 0 in production"),
    Setting(
        "SECRET_KEY", "text", str, "", "Django's signing key; made in var/secrets when empty", secret=True
    ),
    Setting(
        "HTTPS_ONLY",
        "flag",
        _flag,
        "1",
        "with DEBUG=0: admin only by HTTPS, behind a proxy that ends TLS; 0 where there is none",
    ),
    Setting("ALLOWED_HOSTS", "list", _names, "*", "host names that web and feed answer to"),
    Setting(
        "DATABASE_URL",
        "url",
        str,
        "sqlite:///{var}/unkey.sqlite3",
        "sqlite:///path or mysql://user:password@host:port/name",
        secret=True,
    ),
    Setting(
        "CELERY_BROKER_URL",
        "url",
        str,
        "filesystem://{var}/broker",
        "filesystem://folder, redis://… or amqp://…",
        secret=True,
    ),
    Setting(
        "REDIS_URL",
        "url",
        str,
        "",
        "redis://… by which machines count rate limits together; empty: each machine for itself",
        secret=True,
    ),
    Setting(
        "CLICKHOUSE_URL",
        "url",
        str,
        "",
        "analytics at scale: http://user:password@host:port/database; empty: segment files",
        secret=True,
    ),
    Setting(
        "TELEMETRY",
        "flag",
        _flag,
        "1",
        "note verifications, rate limits and requests for analytics and usage; 0: nothing is counted",
    ),
    Setting(
        "OBJECT_STORE_URL", "url", str, "file://{var}/objects", "file://folder or s3://bucket", secret=True
    ),
    Setting("VAULT_URL", "url", str, "local:", "local: in process, or the URL of a vault process"),
    Setting(
        "VAULT_MASTER_KEY",
        "hex",
        str,
        "",
        "key-encryption key, 32 bytes in hexadecimal; made in var/secrets when empty",
        secret=True,
    ),
    Setting(
        "VAULT_PREVIOUS_MASTER_KEYS",
        "list",
        _names,
        "",
        "older key-encryption keys, for unwrapping only",
        secret=True,
    ),
    Setting(
        "VAULT_TOKEN",
        "text",
        str,
        "",
        "shared by the vault process and its callers; made in var/secrets when empty",
        secret=True,
    ),
    Setting(
        "AGENT_TOKEN",
        "text",
        str,
        "",
        "shared by agents and the control plane; made in var/secrets when empty",
        secret=True,
    ),
    Setting(
        "AGENT_PREVIOUS_TOKENS",
        "list",
        _names,
        "",
        "earlier values of AGENT_TOKEN, still taken while it is being replaced",
        secret=True,
    ),
    Setting(
        "AGENT_RUNTIME",
        "process|docker|kubernetes",
        _choice("process", "docker", "kubernetes"),
        "process",
        "what runs instances",
    ),
    Setting(
        "BUILD_BACKEND",
        "snapshot",
        _choice("snapshot"),
        "snapshot",
        "what turns source into something to run",
    ),
    Setting(
        "ACME_DIRECTORY_URL",
        "url",
        str,
        "",
        "ACME directory (no effect yet); empty: the local CA that is made on first start",
    ),
    Setting("REGION", "name", str, "local", "region of this machine's edge and agent"),
    Setting(
        "REGIONS",
        "list",
        _names,
        "",
        "regions that `manage.py up` runs here, each with an agent and an edge; empty: REGION alone",
    ),
    Setting(
        "EDGE_REGIONS",
        "list",
        _names,
        "",
        "regions of the edges that `manage.py up` runs here, one edge for each mention; empty: as REGIONS",
    ),
    Setting(
        "NEAREST_REGIONS",
        "table like fra=ams,iad;iad=fra",
        _nearest,
        "",
        "where an edge sends requests of an app that has no instance in its region: the nearest first",
    ),
    Setting("DEFAULT_DOMAIN", "name", str, "unkey.localhost", "apex of generated host names"),
    Setting("BIND", "address", str, "127.0.0.1", "address that every process listens on"),
    Setting(
        "TRUSTED_PROXIES",
        "list of networks",
        _networks,
        "127.0.0.0/8,::1/128",
        "whose X-Forwarded-For tells the address of a caller: the edge, a load balancer",
    ),
    Setting(
        "PORTS",
        "default|auto",
        _choice("default", "auto"),
        "default",
        "auto: `manage.py up` takes free ports",
    ),
    Setting(
        "PORTAL_URL",
        "url",
        lambda text: text.rstrip("/"),
        "",
        "page where portal sessions begin, with ?code=…; empty: no sessions can be made",
    ),
    Setting(
        "CORS_ORIGINS",
        "list",
        _names,
        "*",
        "origins whose pages may call /v2 at web: https://app.example.com, or * for any; empty: none",
    ),
    Setting(
        "DOCS_URL",
        "url",
        lambda text: text.rstrip("/"),
        "https://unkey.com/docs",
        "where errors say that they are explained; web explains them itself, at /docs",
    ),
    Setting("WEB_PORT", "port", _port, "8080", "web: admin, management API"),
    Setting("WEB_WORKERS", "count", _count, "1", "processes of web"),
    Setting("WEB_THREADS", "count", _count, "8", "threads of each web process"),
    Setting("FEED_PORT", "port", _port, "8081", "feed: agents' watch streams"),
    Setting("VAULT_PORT", "port", _port, "8060", "vault process, when one is run"),
    Setting("AGENT_PORT", "port", _port, "8070", "agent: health, metrics, logs of instances"),
    Setting("AGENT_ID", "name", str, "", "name of this agent; empty: region and host name"),
    Setting("AGENT_URL", "url", str, "", "where web reaches the agent's port; empty: this machine"),
    Setting(
        "AGENT_START_DEADLINE_SECONDS",
        "seconds",
        _seconds,
        "60",
        "how long an instance without a health check may take to answer",
    ),
    Setting(
        "AGENT_DRAIN_SECONDS",
        "seconds",
        _seconds,
        "10",
        "at most how long an instance still runs until all edges know of its end and requests are answered",
    ),
    Setting(
        "AGENT_SCALE_SECONDS",
        "seconds",
        _seconds,
        "15",
        "how often the load of instances is looked at, where their number may change",
    ),
    Setting(
        "AGENT_SCALE_DOWN_SECONDS",
        "seconds",
        _seconds,
        "60",
        "how long fewer instances must be enough before there are fewer",
    ),
    Setting("EDGE_API_PORT", "port", _port, "7070", "edge: verification API, and /v2 passed on to web"),
    Setting("EDGE_HTTP_PORT", "port", _port, "7080", "edge: HTTP of deployed apps"),
    Setting("EDGE_HTTPS_PORT", "port", _port, "7443", "edge: HTTPS of deployed apps"),
    Setting("EDGE_METRICS_PORT", "port", _port, "9090", "edge: health and Prometheus metrics"),
    Setting(
        "EDGE_ROLE",
        "all, or a list of api, frontline, sentinel",
        _roles,
        "all",
        "what this edge process does",
    ),
    Setting(
        "EDGE_WORKERS",
        "count",
        _count,
        "0",
        "processes of an edge that share its ports, replaced when they end; 0: one, that nobody replaces",
    ),
    Setting("EDGE_ID", "name", str, "edge-1", "name of this edge; its snapshot and ledger are kept under it"),
    Setting("EDGE_POLL_MS", "milliseconds", _count, "100", "how often an edge asks for changes"),
    Setting(
        "EDGE_KEY_CAPACITY",
        "count",
        _count,
        "1000000",
        "most API keys, and most identities, that an edge keeps in memory",
    ),
    Setting(
        "EDGE_WAKE_SECONDS",
        "seconds",
        _seconds,
        "30",
        "how long a request for a sleeping deployment is held while that wakes up",
    ),
    Setting("EDGE_WAKE_REQUESTS", "count", _count, "500", "most requests that are held so at once"),
    Setting(
        "EDGE_JWKS_PRIVATE",
        "flag",
        _flag,
        "0",
        "fetch the keys of jwtauth policies from private addresses and over plain HTTP, too",
    ),
    Setting("EDGE_HTTPS_REDIRECT", "flag", _flag, "0", "answer plain HTTP by a redirect to HTTPS"),
    Setting("EDGE_REUSE_PORT", "flag", _flag, "0", "let several edges share their ports (SO_REUSEPORT)"),
    Setting("EDGE_MAX_HEADER_BYTES", "bytes", _count, "32768", "largest head of a request or response"),
    Setting("EDGE_MAX_HEADERS", "count", _count, "100", "headers that a request may have"),
    Setting("EDGE_MAX_BODY_BYTES", "bytes", _count, str(100 * 1024 * 1024), "largest request body; 0: any"),
    Setting(
        "EDGE_BODY_BYTES_OF_HOSTS",
        "list like upload.example.com=1073741824, *.example.com=0",
        _bytes_of_hosts,
        "",
        "routes whose request bodies have another bound than EDGE_MAX_BODY_BYTES; 0: any",
    ),
    Setting(
        "EDGE_MAX_CONNECTIONS",
        "count",
        _count,
        "0",
        "client connections of one listener; 0: a third of the files that the process may open",
    ),
    Setting(
        "EDGE_MAX_CONNECTIONS_PER_ADDRESS",
        "count",
        _count,
        "1000",
        "connections of one address at a listener, but for TRUSTED_PROXIES; 0: any",
    ),
    Setting(
        "EDGE_PROXY_PROTOCOL",
        "flag",
        _flag,
        "0",
        "TRUSTED_PROXIES begin each connection with the PROXY protocol, version 1 or 2, before TLS",
    ),
    Setting(
        "EDGE_BODY_TIMEOUT_SECONDS", "seconds", _count, "60", "how long a client may be silent within a body"
    ),
    Setting(
        "EDGE_SEND_TIMEOUT_SECONDS",
        "seconds",
        _count,
        "60",
        "how long a client may take nothing of an answer that waits for it",
    ),
    Setting("EDGE_HEADER_TIMEOUT_SECONDS", "seconds", _count, "10", "how long a client may take for a head"),
    Setting("EDGE_IDLE_TIMEOUT_SECONDS", "seconds", _count, "75", "how long a connection may stay unused"),
    Setting(
        "EDGE_UPGRADE_IDLE_TIMEOUT_SECONDS",
        "seconds",
        _count,
        "3600",
        "how long both sides of a WebSocket may be silent",
    ),
    Setting("EDGE_REQUEST_TIMEOUT_SECONDS", "seconds", _count, "900", "how long a request may take in all"),
    Setting(
        "EDGE_CONNECT_TIMEOUT_SECONDS", "seconds", _count, "2", "how long connecting to an instance may take"
    ),
    Setting(
        "EDGE_DRAIN_SECONDS", "seconds", _count, "30", "how long requests may take to end after a SIGTERM"
    ),
    Setting(
        "SATELLITE_KEPT_SECONDS",
        "seconds",
        _seconds,
        "86400",
        "how long a silent agent or edge is waited for before what it has not seen may be removed",
    ),
    Setting(
        "WORKER_CONCURRENCY", "count", _count, "4", "outside parts of steps that one worker runs at a time"
    ),
    Setting("WORKER_METRICS_PORT", "count", _count, "0", "worker: port of its Prometheus metrics; 0: none"),
    Setting(
        "WORKFLOW_LEASE_SECONDS",
        "seconds",
        _count,
        "15",
        "how long a step may be silent before another worker takes it over",
    ),
    Setting("SNAPSHOT_MAX_BYTES", "bytes", _count, str(100 * 1024 * 1024), "largest packed source snapshot"),
    Setting(
        "DEPLOY_HEALTH_DEADLINE_SECONDS",
        "seconds",
        _count,
        "900",
        "how long instances may take to become healthy",
    ),
    Setting(
        "STANDBY_AFTER_SECONDS",
        "seconds",
        _count,
        "1800",
        "how long a replaced live deployment keeps running",
    ),
    Setting(
        "PREVIEW_STANDBY_AFTER_SECONDS",
        "seconds",
        _seconds,
        "60",
        "how long a replaced preview keeps running",
    ),
    Setting(
        "PREVIEW_IDLE_SECONDS",
        "seconds",
        _seconds,
        "21600",
        "how long a preview without requests keeps running; a request wakes it",
    ),
    Setting(
        "QUOTA_MAIL_FROM",
        "address",
        str,
        "",
        "sender of mails to owners whose workspace is past a monthly limit; empty: none are sent",
    ),
    Setting("WEB_URL", "url", str, "", "where satellites and the edge reach web; empty: this machine"),
    Setting("FEED_URL", "url", str, "", "where agents reach feed; empty: this machine"),
    Setting(
        "CONSOLE_FEED_URL",
        "url",
        str,
        "",
        "where browsers reach feed; empty: the host that they reach web by, on FEED_PORT",
    ),
    Setting(
        "LOG_LEVEL",
        "debug|info|warning|error",
        _choice("debug", "info", "warning", "error"),
        "info",
        "least severe log line that is written",
    ),
    Setting("LOG_FORMAT", "json|text", _choice("json", "text"), "text", "how log lines look"),
)

BY_NAME = {setting.name: setting for setting in SETTINGS}


class Env:
    """The settings as attributes, parsed when they are first read."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        setting = BY_NAME.get(name)
        if setting is None:
            raise AttributeError(name)
        if name not in self._values:
            self._values[name] = self._read(setting)
        return self._values[name]

    def check(self) -> None:
        """Read every setting, so that what is malformed is said at the start and not when it is needed.

        Raises:
            BadSetting: the first that cannot be read.
        """
        for name in BY_NAME:
            getattr(self, name)

    def is_set(self, name: str) -> bool:
        """Say whether the environment itself gives this setting."""
        return name in self._environ

    def text(self, name: str) -> str:
        """Return a setting as the environment or its default writes it, before it is parsed."""
        text = self._environ.get(name, BY_NAME[name].default)
        return text.replace("{var}", str(self.UNKEY_VAR)) if "{var}" in text else text

    def _read(self, setting: Setting) -> Any:
        text = self.text(setting.name)
        try:
            return setting.parse(text)
        except ValueError:
            shown = "" if setting.secret else f", not {text!r}"
            raise BadSetting(f"{setting.name} must be a {setting.kind}{shown}: {setting.help}") from None

    @property
    def limits_folder(self) -> Path:
        """Where the processes of this machine share the counts of rate limits."""
        return Path(self.UNKEY_VAR) / "limits"

    @property
    def tickets_folder(self) -> Path:
        """Where the processes of this machine share the key of their TLS sessions."""
        return Path(self.UNKEY_VAR) / "tls"

    @property
    def web_url(self) -> str:
        """Base URL of web, without a trailing slash."""
        return str(self.WEB_URL or f"http://{self.local_address}:{self.WEB_PORT}").rstrip("/")

    @property
    def feed_url(self) -> str:
        """Base URL of feed, without a trailing slash."""
        return str(self.FEED_URL or f"http://{self.local_address}:{self.FEED_PORT}").rstrip("/")

    @property
    def local_address(self) -> str:
        """Where this machine reaches its own processes, which listen on BIND."""
        return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(str(self.BIND), str(self.BIND))  # noqa: S104

    def secret(self, name: str) -> str:
        """Return a secret setting, or the one that is made and kept in `var/secrets`."""
        from unkey import keyfiles

        given: str = getattr(self, name)
        return given or keyfiles.read_or_make(self.UNKEY_VAR / "secrets", name.lower())


env = Env(os.environ)
