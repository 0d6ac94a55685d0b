"""OpenAPI documents of deployments: what a deployment served, how two differ, what would break clients."""

from apps.deployments import gates, openapi
from apps.deployments.models import Deployment, OpenapiSpec
from unkey import clock, errors

Report = openapi.Report


def find_spec(of: Deployment) -> OpenapiSpec:
    """Return the document that a deployment of the workspace in scope served.

    Raises:
        OpenapiSpecNotFound: it served none, or was not ready yet.
    """
    found = OpenapiSpec.objects.filter(deployment=of).first()
    if found is None:
        raise errors.OpenapiSpecNotFound(
            f"The deployment {of.id} has served no OpenAPI document. It is fetched when the deployment gets "
            "ready, from the path that the environment's setting openapiSpecPath names."
        )
    return found


def compare(old: Deployment, new: Deployment) -> Report:
    """Compare what two deployments of the workspace in scope served.

    Raises:
        OpenapiSpecNotFound: one of them served no document.
        InvalidInput: one of the documents cannot be compared.
    """
    try:
        before = _document(find_spec(old))
    except openapi.BadDocument as bad:
        raise errors.InvalidInput(f"Invalid OpenAPI specification in old version: {bad}.") from bad
    try:
        after = _document(find_spec(new))
        return openapi.compare(before, after, today=clock.now().date())
    except openapi.BadDocument as bad:
        raise errors.InvalidInput(f"Invalid OpenAPI specification in new version: {bad}.") from bad


def objection(deployment: Deployment, live_id: str | None) -> str:
    """Say why a deployment may not replace the live one; empty: it may.

    Only an environment that refuses breaking changes objects. Without a live deployment, or one that
    served no document, there is nothing that could break. Reads large documents: not for inside a
    transaction.

    Args:
        deployment: what would become live.
        live_id: the app's current deployment.
    """
    if not deployment.environment.refuse_breaking_changes or not gates.is_production(deployment):
        return ""
    if live_id is None or live_id == deployment.id:
        return ""
    rows = OpenapiSpec.objects.unscoped("a workflow names deployments by id")
    specs = {spec.deployment_id: spec for spec in rows.filter(deployment_id__in=[live_id, deployment.id])}
    if live_id not in specs:
        return ""
    if deployment.id not in specs:
        return _refused(
            f"It serves no OpenAPI document at {_path(deployment)}, and the live deployment {live_id} does"
        )
    try:
        documents = [_document(specs[each]) for each in (live_id, deployment.id)]
        report = openapi.compare(*documents, today=clock.now().date())
    except openapi.BadDocument as bad:
        return _refused(f"Its OpenAPI document cannot be compared with that of {live_id}: {bad}")
    if not report.breaking:
        return ""
    first = report.breaking[0]
    where = f"{first.method} {first.path}: " if first.path else ""
    others = len(report.breaking) - 1
    more = f" and {others} more" if others else ""
    return _refused(
        f"It would break clients of the live deployment {live_id}: {where}{first.text} [{first.id}]{more}; "
        f"`unkey diff {live_id} {deployment.id}` shows all"
    )


def _document(spec: OpenapiSpec) -> openapi.Document:
    if spec.document is None:
        raise openapi.BadDocument(spec.fault or "it was kept before documents were compared; deploy again")
    return openapi.unpack(bytes(spec.document))


def _path(deployment: Deployment) -> str:
    return str(deployment.settings["openapiSpecPath"] or "/openapi.yaml")


def _refused(why: str) -> str:
    return (
        f"{why}. The environment refuses breaking changes: deploy a version that keeps the promises, or let "
        "breaking changes pass (`unkey settings --allow-breaking-changes`) and promote this one."
    )
