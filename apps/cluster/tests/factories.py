"""Satellites as the control plane has heard of them, for tests: an edge or agent that was just there."""

import factory
from factory.django import DjangoModelFactory

from apps.cluster.models import Agent, Edge, Region
from unkey import clock


class EdgeFactory(DjangoModelFactory[Edge]):
    """An edge of this region that has applied nothing yet."""

    class Meta:
        model = Edge

    id = factory.Sequence(lambda number: f"edge-{number + 1}")
    region_name = "local"
    applied = factory.LazyFunction(dict)
    last_seen_at = factory.LazyFunction(clock.now)


class AgentFactory(DjangoModelFactory[Agent]):
    """The agent of this region, which has applied nothing yet."""

    class Meta:
        model = Agent

    id = factory.Sequence(lambda number: f"agent-{number + 1}")
    region = factory.LazyFunction(lambda: Region.objects.get(name="local"))
    applied = factory.LazyFunction(dict)
    last_seen_at = factory.LazyFunction(clock.now)
