"""Operations that belong to no app."""

from unkey.rpc.call import Call
from unkey.rpc.routes import JSON, route
from unkey.rpc.schema import obj, string


@route(
    "liveness",
    request=None,
    response=obj({"message": string()}),
    method="GET",
    public=True,
)
def liveness(_call: Call) -> JSON:
    """Say that the API answers."""
    return {"message": "we're cooking"}
