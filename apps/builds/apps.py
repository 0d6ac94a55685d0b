"""Builds: sources and what runs them."""

from collections.abc import Iterable

from django.apps import AppConfig


class BuildsConfig(AppConfig):
    name = "apps.builds"

    def ready(self) -> None:
        """Keep the runs that hold or await build slots from being pruned."""
        from apps.workflows import history

        history.refers(_with_slots)


def _with_slots(run_ids: list[str]) -> Iterable[str]:
    from apps.builds.models import BuildSlot
    from unkey.tenancy import unscoped

    with unscoped("pruning asks for every workspace"):
        return set(BuildSlot.objects.filter(run_id__in=run_ids).values_list("run_id", flat=True))
