"""The envelope and the pipeline of every `/v2` request."""

import json

from django.test import Client

from unkey.rpc.testing import Tenant


def test_liveness_needs_no_key(db: None) -> None:
    response = Client().get("/v2/liveness")
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    body = json.loads(response.content)
    assert body["data"] == {"message": "we're cooking"}
    assert body["meta"]["requestId"].startswith("req_")
    assert set(body) == {"meta", "data"}


def test_an_unknown_operation_is_a_404_in_the_envelope(tenant: Tenant) -> None:
    error = tenant.refused("nothing.atAll", {}, 404)
    assert error == {
        "title": "Not Found",
        "detail": "There is no operation 'nothing.atAll'.",
        "status": 404,
        "type": "https://unkey.com/docs/errors/user/bad_request/route_not_found",
    }


def test_a_wrong_method_is_a_405_that_names_the_right_one(db: None) -> None:
    response = Client().post("/v2/liveness")
    assert response.status_code == 405
    assert response["Allow"] == "GET"
    assert json.loads(response.content)["error"]["title"] == "Method Not Allowed"
