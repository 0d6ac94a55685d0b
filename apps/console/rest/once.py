"""Requests that name an `Idempotency-Key` are carried out once; a repetition gets the first answer.

The key's row is written first, in the same transaction as what the request does and as its answer.
So a duplicate that comes meanwhile waits for the row, and a crash leaves neither of them behind.
Refusals are kept too, except those that are our own fault.
"""

import hashlib
from collections.abc import Callable
from datetime import timedelta

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response

from apps.console.models import KeptAnswer
from unkey import clock, errors
from unkey.errors import Fault, Violation

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEPT_FOR = timedelta(hours=24)
_LONGEST = 255


def key_of(request: Request) -> str | None:
    """Return the key that a request names, None if it names none.

    Raises:
        InvalidInput: it is empty, too long, or not printable ASCII.
    """
    key: str | None = request.headers.get(HEADER)
    if key is None:
        return None
    if not key or len(key) > _LONGEST or not (key.isascii() and key.isprintable()):
        message = f"{HEADER} must be 1 to {_LONGEST} printable ASCII characters"
        fix = "Send a fresh UUID for each thing that you want to happen."
        raise errors.InvalidInput(message, violations=(Violation(message, f"header.{HEADER}", fix),))
    return key


def answered_once(
    request: Request,
    user: User,
    key: str,
    act: Callable[[], Response],
    refused: Callable[[Exception], Response],
) -> Response:
    """Carry a request out, or give the answer that the first one with this key got.

    Args:
        request: an authenticated one.
        user: who asks.
        key: what it names.
        act: carries it out.
        refused: turns a refusal into its answer.

    Raises:
        IdempotencyKeyReused: the key was used for another request.
    """
    key_hash = hashlib.sha256(key.encode()).hexdigest()
    fingerprint = _fingerprint(request)
    rows = KeptAnswer.objects.filter(user=user, key_hash=key_hash)
    with transaction.atomic():
        rows.filter(created_at__lt=clock.now() - KEPT_FOR).delete()
        try:
            with transaction.atomic():
                kept = KeptAnswer.objects.create(user=user, key_hash=key_hash, fingerprint=fingerprint)
        except IntegrityError:
            return _replayed(rows.get(), fingerprint)
        try:
            with transaction.atomic():
                answer = act()
        except (Fault, APIException) as error:
            answer = refused(error)
        if answer.status_code >= 500:
            transaction.set_rollback(True)
            return answer
        kept.status = answer.status_code
        kept.body = without_secrets(answer.data)
        if answer.content_type:
            kept.headers = {"Content-Type": answer.content_type}
        kept.save(update_fields=["status", "body", "headers"])
        return answer


def without_secrets(body: object) -> object:
    """Return an answer as it may be kept: the text of a token is shown once and to nobody later."""
    if isinstance(body, dict) and "plaintext" in body:
        return {**body, "plaintext": None}
    return body


def prune() -> int:
    """Forget answers that are kept no longer; return how many there were."""
    deleted, _ = KeptAnswer.objects.filter(created_at__lt=clock.now() - KEPT_FOR).delete()
    return deleted


def _fingerprint(request: Request) -> str:
    asked = f"{request.method} {request.get_full_path()}\n".encode()
    return hashlib.sha256(asked + request._request.body).hexdigest()


def _replayed(kept: KeptAnswer, fingerprint: str) -> Response:
    if kept.fingerprint != fingerprint:
        raise errors.IdempotencyKeyReused(
            f"This {HEADER} was used for another request within the last 24 hours. Use a fresh one."
        )
    return Response(
        kept.body,
        status=kept.status,
        headers={REPLAYED: "true"},
        content_type=kept.headers.get("Content-Type"),
    )
