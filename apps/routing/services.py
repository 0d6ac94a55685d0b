"""Writes of routing: which deployment answers a host name, and what its sentinel enforces."""

from collections.abc import Collection, Iterable

from django.db import IntegrityError, transaction

from apps.cluster import versions
from apps.deployments.models import Deployment
from apps.routing import domains
from apps.routing.domains import Domain
from apps.routing.models import Contract, FrontlineRoute, Sentinel
from unkey import clock
from unkey.env import env
from unkey.tenancy import unscoped

Sticky = FrontlineRoute.Sticky


class HostNameTaken(RuntimeError):
    """A host name belongs to somebody else, and so does its alternative where there is one."""


def domains_of(deployment: Deployment) -> list[Domain]:
    """Return the generated host names that a deployment asks for."""
    names = domains.Names(
        workspace=deployment.workspace.slug,
        project=deployment.project.slug,
        app=deployment.app.slug,
        environment=deployment.environment.slug,
        deployment=deployment.id,
        production=deployment.environment.kind == "production",
        commit=deployment.git_commit_sha,
        branch=deployment.git_branch,
        fork=deployment.git_repository,
        from_cli=deployment.trigger == Deployment.Trigger.CLI,
        apex=env.DEFAULT_DOMAIN,
    )
    return domains.generated(names, deployment.environment_id)


def assign_routes(deployment: Deployment, wanted: Iterable[Domain]) -> int:
    """Point host names at a deployment, creating those that are new.

    A name that another project, environment or branch holds is never taken over: the deployment
    gets a name of the same kind with a hash instead. The caller's transaction holds the app's row,
    so that two deployments of an app never assign at the same time.

    Returns:
        The version of `routes` at which all of it is visible.

    Raises:
        HostNameTaken: the alternative is not free either.
    """
    version = 0
    with transaction.atomic(), unscoped("a host name is unique across workspaces"):
        for domain in sorted(wanted, key=lambda domain: domain.fqdn):
            for name in (domain, domains.apart(domain)):
                route = _claim(deployment, name)
                if route is not None:
                    version = max(version, route.version)
                    break
            else:
                raise HostNameTaken(domain.fqdn)
    return version


def claim_host(deployment: Deployment, fqdn: str) -> FrontlineRoute:
    """Point a custom host name at what is live in a deployment's environment.

    Claiming it again changes nothing, and one that was given up is claimed anew: verification may be
    repeated as often as it takes. A host name has one owner among all workspaces.

    Args:
        fqdn: in lower case, verified to belong to the deployment's workspace.

    Raises:
        HostNameTaken: another environment holds it.
    """
    with transaction.atomic(), unscoped("a host name is unique across workspaces"):
        route = _claim(deployment, Domain(fqdn, Sticky.LIVE, deployment.environment_id))
        if route is None:
            raise HostNameTaken(fqdn)
        return route


def move_routes(deployment: Deployment, stickies: Collection[FrontlineRoute.Sticky]) -> tuple[int, int]:
    """Point every route of the deployment's environment that is sticky in one of these ways at it.

    Custom domains are sticky to what is live and so follow along.

    Returns:
        How many routes the deployment holds of these kinds, and the version of `routes` at which
        all of it is visible.
    """
    version = count = 0
    with transaction.atomic(), unscoped("routes of one environment"):
        rows = FrontlineRoute.objects.select_for_update().filter(
            environment_id=deployment.environment_id, sticky__in=list(stickies), deleted_at=None
        )
        for route in rows.order_by("fqdn"):
            count += 1
            _point(route, deployment)
            version = max(version, route.version)
    return count, version


def write_sentinel(deployment: Deployment) -> Sentinel | None:
    """Give the edges what a deployment froze: its policies and how to speak to its instances.

    A deployment all of whose host names are local gets none. One that has its own keeps it.
    """
    with transaction.atomic(), unscoped("routes of one deployment"):
        known = Sentinel.objects.filter(deployment=deployment).first()
        if known is not None:
            return known
        hosts = FrontlineRoute.objects.filter(deployment=deployment, deleted_at=None)
        names = hosts.values_list("fqdn", flat=True)
        if all(domains.is_local(fqdn, env.DEFAULT_DOMAIN) for fqdn in names):
            return None
        sentinel = Sentinel(
            deployment=deployment,
            workspace_id=deployment.workspace_id,
            environment_id=deployment.environment_id,
            policies=deployment.policies,
            upstream_protocol=deployment.settings["upstreamProtocol"],
            desired_state=Deployment.DesiredState.RUNNING,
        )
        versions.stamp(sentinel)
        sentinel.save()
    return sentinel


def write_contract(deployment: Deployment, plan: bytes, fault: str) -> Contract:
    """Give the edges what requests to a deployment must look like.

    Args:
        deployment: whose.
        plan: see `apps.routing.contracts.of_document`; empty: it serves no document.
        fault: why requests cannot be checked; edges refuse them.
    """
    with transaction.atomic():
        contract = Contract.objects.filter(deployment=deployment).first() or Contract(deployment=deployment)
        contract.workspace_id = deployment.workspace_id
        contract.plan, contract.fault = plan, fault[: Contract._meta.get_field("fault").max_length]
        versions.stamp(contract)
        contract.save()
    return contract


def set_sentinel_state(deployment_id: str, desired_state: str) -> int:
    """Tell the edges whether a deployment should answer at all.

    Returns:
        The version of the stream `sentinels` at which they know; 0 where it has no row there.
    """
    with transaction.atomic():
        sentinel = Sentinel.objects.select_for_update().filter(deployment_id=deployment_id).first()
        if sentinel is None:
            return 0
        if sentinel.desired_state != desired_state:
            sentinel.desired_state = desired_state
            versions.stamp(sentinel)
            sentinel.save(update_fields=["desired_state", "version"])
        return sentinel.version


def _claim(deployment: Deployment, domain: Domain) -> FrontlineRoute | None:
    """Take a host name for a deployment; None if it belongs to somebody else."""
    rows = FrontlineRoute.objects.select_for_update()
    route = rows.filter(fqdn=domain.fqdn).first()
    if route is None:
        route = FrontlineRoute(fqdn=domain.fqdn, sticky=domain.sticky)
        try:
            with transaction.atomic():
                _point(route, deployment, domain.sticky)
            return route
        except IntegrityError:  # another project claimed it since we looked
            route = rows.get(fqdn=domain.fqdn)
    if route.deleted_at is None and not _owns(deployment, route, domain):
        return None
    _point(route, deployment, domain.sticky)
    return route


def _owns(deployment: Deployment, route: FrontlineRoute, domain: Domain) -> bool:
    if route.environment_id != deployment.environment_id or route.sticky != domain.sticky:
        return False
    match domain.sticky:
        case Sticky.BRANCH:
            return bool(route.deployment.git_branch == deployment.git_branch)
        case Sticky.NONE:
            return bool(route.deployment.git_commit_sha == deployment.git_commit_sha)
        case Sticky.DEPLOYMENT:
            return bool(route.deployment_id == deployment.id)
    return True


def _point(
    route: FrontlineRoute, deployment: Deployment, sticky: FrontlineRoute.Sticky | None = None
) -> None:
    if route.version and route.deployment_id == deployment.id and route.deleted_at is None:
        return
    route.workspace_id = deployment.workspace_id
    route.project_id = deployment.project_id
    route.app_id = deployment.app_id
    route.environment_id = deployment.environment_id
    route.deployment_id = deployment.id
    route.sticky = sticky or route.sticky
    route.deleted_at = None
    route.updated_at = clock.now()
    versions.stamp(route)
    route.save()
