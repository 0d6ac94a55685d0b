"""Tables of the dashboard REST: answers kept for retries, and attempts to log in."""

from typing import Any

from django.conf import settings
from django.db import models

from unkey import clock


class KeptAnswer(models.Model):
    """The first answer to a request with an Idempotency-Key; it commits with what the request did.

    `status` is 0 only inside the transaction of the first request: nobody else ever reads it so.
    """

    id = models.BigAutoField(primary_key=True)
    user: Any = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    key_hash = models.CharField(max_length=64, help_text="SHA-256 of the key")
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of method, address and body")
    status = models.PositiveSmallIntegerField(default=0)
    body = models.JSONField(null=True)
    headers = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=clock.now, db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "key_hash"], name="console_answer_once")]

    def __str__(self) -> str:
        return f"{self.status} kept for user {self.user_id}"


class LoginAttempt(models.Model):
    """An attempt to log in that has not succeeded; what the rate limit counts."""

    id = models.BigAutoField(primary_key=True)
    name_hash = models.CharField(max_length=64, help_text="SHA-256 of the user name that was tried")
    remote_ip = models.CharField(max_length=64)
    at = models.DateTimeField(default=clock.now, db_index=True)

    class Meta:
        indexes = [
            models.Index(fields=["name_hash", "at"], name="console_attempt_name"),
            models.Index(fields=["remote_ip", "at"], name="console_attempt_ip"),
        ]

    def __str__(self) -> str:
        return f"attempt from {self.remote_ip} at {self.at}"
