"""Logging in: how often it may be tried.

Counted in the database, so that it holds for all processes together. An attempt is written before the
password is looked at and removed when it was right: many at once cannot slip through.
"""

import hashlib
from datetime import timedelta

from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.db.models import Count, Q

from apps.console.models import LoginAttempt
from unkey import clock, errors

WINDOW = timedelta(minutes=5)
PER_NAME_AND_ADDRESS = 10
PER_ADDRESS = 30
PER_NAME = 100  # more than one guesser from elsewhere can use up to lock a person out quickly


def log_in(username: str, password: str, *, remote_ip: str) -> User:
    """Return the active account that a name and a password belong to.

    Raises:
        LoginRateLimited: too many attempts failed for the name or from the address; with `Retry-After`.
        InvalidCredentials: they do not.
    """
    name_hash = hashlib.sha256(username.encode()).hexdigest()
    attempt = LoginAttempt.objects.create(name_hash=name_hash, remote_ip=remote_ip)
    recent = LoginAttempt.objects.filter(at__gt=clock.now() - WINDOW).exclude(pk=attempt.pk)
    tried = recent.aggregate(
        name=Count("pk", filter=Q(name_hash=name_hash)),
        address=Count("pk", filter=Q(remote_ip=remote_ip)),
        both=Count("pk", filter=Q(name_hash=name_hash, remote_ip=remote_ip)),
    )
    if tried["both"] >= PER_NAME_AND_ADDRESS or tried["address"] >= PER_ADDRESS or tried["name"] >= PER_NAME:
        # Not counted itself: whoever keeps knocking is let in again when the window has passed.
        attempt.delete()
        seconds = int(WINDOW.total_seconds())
        raise errors.LoginRateLimited(
            f"Too many attempts to log in. Wait {seconds // 60} minutes and try again.",
            headers={"Retry-After": str(seconds)},
        )
    user = authenticate(username=username, password=password)
    if not isinstance(user, User):
        raise errors.InvalidCredentials("The user name or the password is wrong.")
    attempt.delete()
    return user


def prune() -> int:
    """Forget attempts that count no longer; return how many there were."""
    deleted, _ = LoginAttempt.objects.filter(at__lt=clock.now() - WINDOW).delete()
    return deleted
