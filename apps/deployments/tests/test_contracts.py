"""What edges are told of the OpenAPI document of a deployment that an openapi policy stands before."""

from pathlib import Path
from typing import Any

import pytest

from apps.deployments.tests.conftest import Platform, Programs
from apps.routing.models import Contract
from apps.workflows.sweeper import drain
from edge.sentinel.contract import unpack
from edge.store import disk
from edge.store.records import Barrier
from edge.store.records import Contract as Record

DOCUMENT = b"""
openapi: 3.0.3
info: {title: pets, version: '1'}
paths:
  /pets/{id}:
    get:
      parameters: [{name: id, in: path, required: true, schema: {type: integer}}]
"""
CHECKED = {"name": "fits", "enabled": True, "openapi": {}}


@pytest.fixture
def released(platform: Platform, programs: Programs) -> Any:
    """Deploy behind policies, with a program that answers like this; return what edges are told."""

    def release(answer: tuple[int, bytes], *policies: dict[str, Any]) -> list[tuple[bytes, str]]:
        programs.answers["/openapi.yaml"] = answer
        where = {**platform.names, "environment": "production"}
        platform.tenant("gateway.setPolicies", {**where, "policies": list(policies)})
        made = platform.create()
        drain()
        platform.report(made, "running", address=programs.address)
        drain()
        assert platform.get(made)["status"] == "ready"
        rows = Contract.objects.filter(deployment_id=made, version__gt=0)
        return [(bytes(row.plan), row.fault) for row in rows]

    return release


def test_a_document_is_a_contract_where_a_policy_asks_for_it(released: Any) -> None:
    assert released((200, DOCUMENT)) == []
    assert released((200, DOCUMENT), {**CHECKED, "enabled": False}) == []
    ((plan, fault),) = released((200, DOCUMENT), CHECKED)
    assert fault == ""
    assert [(each.method, each.path) for each in unpack(plan).operations] == [("GET", "/pets/{id}")]


def test_a_deployment_without_a_document_is_told_apart_from_one_that_cannot_be_read(released: Any) -> None:
    assert released((404, b""), CHECKED) == [(b"", "")]
    ((plan, fault),) = released((200, b"openapi: 3.0.0\npaths: []\n"), CHECKED)
    assert (plan, fault) == (b"", "its field paths is not an object")
    ((plan, fault),) = released((500, b""), CHECKED)
    assert (plan, fault) == (b"", "the app answered /openapi.yaml with status 500")


def test_contracts_and_barriers_survive_on_an_edge_s_disk(tmp_path: Path) -> None:
    contract = Record("d_1", b"\x00plan", "", 7)
    barrier = Barrier("env_1", ("192.0.2.0/24",), True, "Back at noon.", 600, ("192.0.2.7",), 8)
    disk.write(tmp_path / "snapshot", {"sentinels": 8}, [[contract], [barrier]])
    assert disk.read(tmp_path / "snapshot") == ({"sentinels": 8}, [contract, barrier])
