"""Fixtures: a rig of real servers."""

from collections.abc import Iterator

import pytest

from edge.http.tests.rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Servers, upstreams and clients that are closed at the end."""
    rig = Rig()
    yield rig
    rig.close()
    for origin in rig.origins:
        assert origin.faults == []
