"""Celery entry points of certificates."""

from apps.certs import services
from unkey.celery import app


@app.task(name="certs.renew", ignore_result=True)
def renew() -> None:
    """Renew the certificates that expire within 30 days."""
    services.ensure_default_certificates()
    services.renew_due()
