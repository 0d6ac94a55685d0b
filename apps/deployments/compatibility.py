"""OpenAPI documents of deployments: what a deployment served, how two differ, what would break clients."""

from apps.deployments import gates, openapi
from apps.deployments.models import Deployment, OpenapiSpec
from unkey import clock, errors

Report = openapi.Report
State = OpenapiSpec.State
_OVERRIDE = "let breaking changes pass (`unkey settings --allow-breaking-changes`)"


def find_spec(of: Deployment) -> OpenapiSpec:
    """Return the document that a deployment of the workspace in scope served.

    Raises:
        OpenapiSpecNotFound: it served none, or was not ready yet.
    """
    found = OpenapiSpec.objects.filter(deployment=of).first()
    if found is None or found.state == State.NONE:
        raise errors.OpenapiSpecNotFound(
            f"The deployment {of.id} has served no OpenAPI document. It is fetched when the deployment gets "
            "ready, from the path that the environment's setting openapiSpecPath names."
        )
    if found.state == State.UNKNOWN:
        raise errors.OpenapiSpecNotFound(
            f"The OpenAPI document of the deployment {of.id} is not known: it {found.fault}. "
            f"{_asked(found)} Mend that, or let the environment's setting openapiSpecPath name another path."
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


def spec_of(deployment_id: str) -> OpenapiSpec | None:
    """Return what a deployment answered when it was asked for its document; None: it was not asked yet."""
    return _specs([deployment_id]).get(deployment_id)


def is_unread(deployment_id: str) -> bool:
    """Say whether it is not known what a deployment serves, not even that it serves no document."""
    spec = spec_of(deployment_id)
    return spec is None or spec.state == State.UNKNOWN


def unread(deployment: Deployment, live_id: str | None, *, itself: bool = False) -> list[Deployment]:
    """Return of which deployments the document has to be known, and is not, before one may go live.

    Args:
        deployment: what would become live.
        live_id: the app's current deployment.
        itself: its own is wanted in any case.
    """
    wanted = [deployment.id] if itself else []
    if _is_held_to(deployment, live_id):
        wanted = [str(live_id), deployment.id]
    specs = _specs(wanted)
    missing = [each for each in wanted if each not in specs or specs[each].state == State.UNKNOWN]
    rows = Deployment.objects.unscoped("a workflow names deployments by id").filter(pk__in=missing)
    return list(rows.order_by("pk"))


def objection(deployment: Deployment, live_id: str | None) -> str:
    """Say why a deployment may not replace the live one; empty: it may.

    Only an environment that refuses breaking changes objects. Without a live deployment, or one that
    answered that it has no document, there is nothing that could break; where one did not answer, nobody
    knows. Reads large documents: not for inside a transaction.

    Args:
        deployment: what would become live.
        live_id: the app's current deployment.
    """
    if live_id is None or not _is_held_to(deployment, live_id):
        return ""
    specs = _specs([live_id, deployment.id])
    live, new = specs.get(live_id), specs.get(deployment.id)
    if live is not None and live.state == State.NONE:
        return ""
    if live is None or live.state == State.UNKNOWN:
        return _undecided(f"The OpenAPI document of the live deployment {live_id}", live, deployment)
    if live.document is None:
        return (
            f"The OpenAPI document of the live deployment {live_id} cannot be compared with: {_fault(live)}. "
            "So nothing says whether this one keeps what that one promises. The environment refuses breaking "
            f"changes: {_OVERRIDE} and promote this one (`unkey promote {deployment.id}`)."
        )
    if new is None or new.state == State.UNKNOWN:
        return _undecided(f"Its OpenAPI document at {_path(deployment)}", new, deployment)
    if new.state == State.NONE:
        return _refused(
            f"It serves no OpenAPI document at {_path(deployment)}, and the live deployment {live_id} does"
        )
    if new.document is None:
        return _refused(f"Its OpenAPI document cannot be compared with that of {live_id}: {_fault(new)}")
    breaking = _first_breaking(live, new)
    if not breaking:
        return ""
    return _refused(
        f"It would break clients of the live deployment {live_id}: {breaking}; "
        f"`unkey diff {live_id} {deployment.id}` shows all"
    )


def standing(deployment: Deployment, live_id: str | None) -> str:
    """Say why a deployment that was held back is not live, as far as is known now."""
    return objection(deployment, live_id) or (
        f"It did not become live because too little was known when it got ready. Nothing speaks against it any "
        f"more: make it live with `unkey promote {deployment.id}`."
    )


def _specs(deployment_ids: list[str]) -> dict[str, OpenapiSpec]:
    rows = OpenapiSpec.objects.unscoped("a workflow names deployments by id")
    return {spec.deployment_id: spec for spec in rows.filter(deployment_id__in=deployment_ids)}


def _is_held_to(deployment: Deployment, live_id: str | None) -> bool:
    """Say whether a deployment has to keep what the live one promises."""
    demanded = deployment.environment.refuse_breaking_changes and gates.is_production(deployment)
    return bool(demanded and live_id is not None and live_id != deployment.id)


def _first_breaking(live: OpenapiSpec, new: OpenapiSpec) -> str:
    """Return the first thing that would break, and how many there are; empty: nothing."""
    if live.digest == new.digest:
        return ""
    report = openapi.compare(_document(live), _document(new), today=clock.now().date())
    if not report.breaking:
        return ""
    first = report.breaking[0]
    where = f"{first.method} {first.path}: " if first.path else ""
    others = len(report.breaking) - 1
    return f"{where}{first.text} [{first.id}]" + (f" and {others} more" if others else "")


def _document(spec: OpenapiSpec) -> openapi.Document:
    if spec.document is None:
        raise openapi.BadDocument(_fault(spec))
    return openapi.unpack(bytes(spec.document))


def _fault(spec: OpenapiSpec) -> str:
    return spec.fault or "it was kept before documents were compared; deploy again"


def _path(deployment: Deployment) -> str:
    return str(deployment.settings["openapiSpecPath"] or "/openapi.yaml")


def _asked(spec: OpenapiSpec) -> str:
    return f"It was asked {spec.attempts} times." if spec.attempts > 1 else "It was asked once."


def _undecided(what: str, spec: OpenapiSpec | None, deployment: Deployment) -> str:
    why = f"the program {spec.fault}. {_asked(spec)}" if spec else "the program has not been asked yet."
    return (
        f"{what} is not known: {why} So nothing says whether this deployment would break clients, and the "
        f"environment refuses breaking changes. `unkey promote {deployment.id}` asks once more and makes it "
        f"live if nothing breaks; or {_OVERRIDE} and promote it."
    )


def _refused(why: str) -> str:
    return (
        f"{why}. The environment refuses breaking changes: deploy a version that keeps the promises, or "
        f"{_OVERRIDE} and promote this one."
    )
