"""Django settings, all taken from the environment through `unkey.env`."""

import os
from typing import Any

from kombu import Exchange, Queue

from unkey import broker, logging
from unkey.database import database
from unkey.env import ROOT, env
from unkey.keyfiles import private_folder

env.check()
private_folder(env.UNKEY_VAR)

BASE_DIR = ROOT
DEBUG = env.DEBUG
# Set by pytest, also for the processes that tests start: what is only logged in production fails there.
TESTING = "PYTEST_VERSION" in os.environ
SECRET_KEY = env.secret("SECRET_KEY")
ALLOWED_HOSTS = list(env.ALLOWED_HOSTS)

INSTALLED_APPS = [
    "unkey",
    "apps.workspaces",
    "apps.quota",
    "apps.audit",
    "apps.cluster",
    "apps.vault",
    "apps.workflows",
    "apps.keys",
    "apps.ratelimits",
    "apps.projects",
    "apps.builds",
    "apps.deployments",
    "apps.routing",
    "apps.certs",
    "apps.analytics",
    "apps.console",
    "django_celery_beat",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "unkey.middleware.RequestContext",
    "unkey.rpc.pipeline.Rpc",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "unkey.urls"
WSGI_APPLICATION = "unkey.wsgi.application"
ASGI_APPLICATION = "unkey.asgi.application"

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# A served process must not make an empty database where the file is gone: only commands do.
_SERVES = os.environ.get("UNKEY_PROCESS") in {"web", "feed", "worker", "beat"}
DATABASES = {"default": database(env.DATABASE_URL, create=not _SERVES)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
FORMAT_MODULE_PATH = ["unkey.formats"]

STATIC_URL = "static/"
STATICFILES_DIRS: list[Any] = []
# Served straight from the installed packages: nothing to collect before the first start.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False

DATA_UPLOAD_MAX_MEMORY_SIZE = 10 * 1024 * 1024

HTTPS_ONLY = env.HTTPS_ONLY and not DEBUG
SECURE_SSL_REDIRECT = HTTPS_ONLY
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS_ONLY else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS_ONLY
SECURE_HSTS_PRELOAD = HTTPS_ONLY
SESSION_COOKIE_SECURE = HTTPS_ONLY
CSRF_COOKIE_SECURE = HTTPS_ONLY
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Agents, edges, scrapers and probes call web by its address, inside the network.
SECURE_REDIRECT_EXEMPT = [r"^internal/", r"^metrics$"]
X_FRAME_OPTIONS = "DENY"

LOGGING = logging.settings()
logging.configure_structlog()

# A message is a wake-up: losing, doubling or reordering one costs latency, never correctness.
_broker = broker.celery_settings(env.CELERY_BROKER_URL)
CELERY_BROKER_URL = _broker["broker_url"]
# Celery prefers the variable of that name, which may say filesystem://, to the setting; but not to these.
CELERY_BROKER_READ_URL = CELERY_BROKER_WRITE_URL = CELERY_BROKER_URL
CELERY_BROKER_TRANSPORT_OPTIONS = _broker["broker_transport_options"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_TIMEOUT = 2
# A publisher stands in somebody's request: it tries twice and leaves the rest to the sweeper.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1, "interval_max": 0.1}
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_QUEUES = [
    Queue(name, Exchange("unkey"), routing_key=name) for name in ("workflows", "builds", "default")
]
CELERY_TASK_CREATE_MISSING_QUEUES = False
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_POOL = "threads"
CELERY_WORKER_CONCURRENCY = env.WORKER_CONCURRENCY
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
# Merged into the scheduler's tables when beat starts; a message that nobody took in time is dropped.
CELERY_BEAT_SCHEDULE: dict[str, Any] = {
    "workflows: wake what is due": {
        "task": "workflows.sweep",
        "schedule": 5.0,
        "options": {"queue": "workflows", "expires": 5.0},
    },
    "workflows: prune history": {
        "task": "workflows.prune",
        "schedule": 86_400.0,
        "options": {"queue": "default", "expires": 3600.0},
    },
    # By the calendar day, which the workflow's key names: often is cheap, and a late start catches up.
    "quota: refill the keys whose day it is": {
        "task": "quota.refill_keys",
        "schedule": 60.0,
        "options": {"queue": "default", "expires": 60.0},
    },
    "quota: tell who is past a monthly limit": {
        "task": "quota.check",
        "schedule": 3600.0,
        "options": {"queue": "default", "expires": 3600.0},
    },
    "analytics: take events into the store": {
        "task": "analytics.take",
        "schedule": 5.0,
        "options": {"queue": "default", "expires": 5.0},
    },
    "analytics: tell keys when they were last used": {
        "task": "analytics.last_used",
        "schedule": 60.0,
        "options": {"queue": "default", "expires": 60.0},
    },
    "analytics: write usage of the month": {
        "task": "analytics.usage",
        "schedule": 300.0,
        "options": {"queue": "default", "expires": 300.0},
    },
    "keys: end leases of edges that are gone": {
        "task": "keys.lapse_leases",
        "schedule": 300.0,
        "options": {"queue": "default", "expires": 300.0},
    },
    "deployments: previews that nobody uses go to sleep": {
        "task": "deployments.sleep_idle",
        "schedule": min(60.0, max(1.0, env.PREVIEW_IDLE_SECONDS / 4)),
        "options": {"queue": "default", "expires": 60.0},
    },
    "console: forget kept answers and failed logins": {
        "task": "console.prune",
        "schedule": 3600.0,
        "options": {"queue": "default", "expires": 3600.0},
    },
    "audit: chain the rows that have come": {
        "task": "audit.seal",
        "schedule": 15.0,
        "options": {"queue": "default", "expires": 15.0},
    },
    "audit: remove what is older than a workspace keeps": {
        "task": "audit.prune",
        "schedule": 3600.0,
        "options": {"queue": "default", "expires": 3600.0},
    },
    "cluster: remove what every satellite has passed": {
        "task": "cluster.compact",
        "schedule": 600.0,
        "options": {"queue": "default", "expires": 600.0},
    },
    "certificates: renew what expires": {
        "task": "certs.renew",
        "schedule": 21_600.0,
        "options": {"queue": "default", "expires": 3600.0},
    },
}

REST_FRAMEWORK = {
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}
SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Unkey dashboard",
    "DESCRIPTION": "What a dashboard shows and does. The API for programs is /v2.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/api/",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_URLCONF": "apps.console.rest.urls",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "RoleEnum": "apps.workspaces.roles.Role",
        "DeploymentStatusEnum": "apps.deployments.models.Deployment.Status",
        "InstanceStatusEnum": "apps.deployments.models.Instance.Status",
    },
    # The page and what it loads come from this server.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"validatorUrl": None, "persistAuthorization": False},
}
