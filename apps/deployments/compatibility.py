"""OpenAPI documents of deployments: what a deployment served, how two differ, what would break clients."""

from datetime import date
from functools import lru_cache
from typing import Any

from django.db.models import BooleanField, ExpressionWrapper, Q

from apps.deployments import gates, openapi
from apps.deployments.models import Deployment, OpenapiSpec
from unkey import clock, errors

Report = openapi.Report
State = OpenapiSpec.State
_READABLE = ExpressionWrapper(Q(document__isnull=False), output_field=BooleanField())
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
        return openapi.compare(before, after, today=_today())
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
    if not live.readable:
        return _live_is_unusable(live_id, _fault(live), deployment)
    if new is None or new.state == State.UNKNOWN:
        return _undecided(f"Its OpenAPI document at {_path(deployment)}", new, deployment)
    if new.state == State.NONE:
        return _refused(
            f"It serves no OpenAPI document at {_path(deployment)}, and the live deployment {live_id} does"
        )
    if not new.readable:
        return _refused(f"Its OpenAPI document cannot be compared with that of {live_id}: {_fault(new)}")
    try:
        breaking = _first_breaking(live, new)
    except openapi.BadDocument as bad:
        if (fault := _own_fault(live)) is not None:
            return _live_is_unusable(live_id, fault, deployment)
        return _refused(f"Its OpenAPI document cannot be compared with that of {live_id}: {bad}")
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


def _specs(deployment_ids: list[str]) -> dict[str, Any]:
    rows = OpenapiSpec.objects.unscoped("a workflow names deployments by id")
    found = rows.filter(deployment_id__in=deployment_ids).defer("text", "document")
    return {spec.deployment_id: spec for spec in found.annotate(readable=_READABLE)} if deployment_ids else {}


def _is_held_to(deployment: Deployment, live_id: str | None) -> bool:
    """Say whether a deployment has to keep what the live one promises."""
    demanded = deployment.environment.refuse_breaking_changes and gates.is_production(deployment)
    return bool(demanded and live_id is not None and live_id != deployment.id)


def _first_breaking(live: OpenapiSpec, new: OpenapiSpec) -> str:
    """Return the first thing that would break, and how many there are; empty: nothing."""
    return "" if live.digest == new.digest else _compared(live.pk, live.digest, new.pk, new.digest, _today())


def _own_fault(spec: OpenapiSpec) -> str | None:
    """Return what keeps a document from being compared with any, even with itself; None: nothing."""
    document = _document(spec)
    try:
        openapi.compare(document, document, today=_today())
    except openapi.BadDocument as bad:
        return str(bad)
    return None


def _live_is_unusable(live_id: str, fault: str, deployment: Deployment) -> str:
    return (
        f"The OpenAPI document of the live deployment {live_id} cannot be compared with: {fault}. "
        "So nothing says whether this one keeps what that one promises. The environment refuses breaking "
        f"changes: {_OVERRIDE} and promote this one (`unkey promote {deployment.id}`)."
    )


def _today() -> date:
    return clock.now().date()


# Every list of deployments asks for this. What is compared is named by its digests, and does not change.
@lru_cache(maxsize=4096)
def _compared(live: str, _live_digest: str, new: str, _new_digest: str, today: date) -> str:
    rows = OpenapiSpec.objects.unscoped("a workflow names deployments by id").defer("text")
    report = openapi.compare(_document(rows.get(pk=live)), _document(rows.get(pk=new)), today=today)
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
