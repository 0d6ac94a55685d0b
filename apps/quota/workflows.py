"""The workflows of limits, where the engine looks for them."""

from apps.quota.check import NotifyQuota, QuotaCheck
from apps.quota.refill import KeyRefill

__all__ = ["KeyRefill", "NotifyQuota", "QuotaCheck"]
