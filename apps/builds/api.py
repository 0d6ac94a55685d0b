"""`/v2` operations on source snapshots."""

from apps.builds import services
from unkey import errors
from unkey.env import env
from unkey.rpc.authorization import T
from unkey.rpc.call import Call
from unkey.rpc.routes import JSON, Archive, route
from unkey.rpc.schema import integer, obj, string


def _largest() -> int:
    largest: int = env.SNAPSHOT_MAX_BYTES
    return largest


@route(
    "snapshots.createSnapshot",
    request=Archive("application/gzip", _largest),
    response=obj(
        {
            "image": string(about="what `deployments.createDeployment` takes as `image.dockerImage`"),
            "size": integer(0),
            "files": integer(0),
        }
    ),
    permission=T("environment.*.create_deployment") | T("project.*.create_deployment"),
    status=201,
    errors=[errors.InvalidSnapshot],
)
def create_snapshot(call: Call) -> JSON:
    """Upload a packed source folder; the header X-Unkey-Digest has it checked on arrival."""
    if call.upload is None:
        raise RuntimeError("an operation with an archive was called without one")
    with call.upload.open("rb") as file:
        snapshot = services.create_snapshot(
            call.workspace_id, file, expected_digest=call.headers.get("X-Unkey-Digest"), actor=call.actor
        )
    return {"image": snapshot.reference, "size": snapshot.size, "files": snapshot.files}
