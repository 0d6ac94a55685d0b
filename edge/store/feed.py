"""Reads the change feed: which streams moved on, and the rows that changed, as records.

Imports Django's models, so it is imported only after `django.setup()`, in the database's thread.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import structlog
from django.db import connection, transaction
from django.db.models import F, Model, Q

from apps.certs.models import Certificate as CertificateRow
from apps.cluster.models import Edge, Stream
from apps.deployments.models import Instance as InstanceRow
from apps.keys.models import Api as ApiRow
from apps.keys.models import Identity as IdentityRow
from apps.keys.models import Key as KeyRow
from apps.keys.models import Ratelimit as RatelimitRow
from apps.keys.models import Role as RoleRow
from apps.ratelimits.models import Namespace as NamespaceRow
from apps.ratelimits.models import Override as OverrideRow
from apps.ratelimits.queries import find_namespaces
from apps.ratelimits.services import ensure_namespace
from apps.routing.models import Barrier as BarrierRow
from apps.routing.models import Contract as ContractRow
from apps.routing.models import FrontlineRoute
from apps.routing.models import Sentinel as SentinelRow
from apps.workspaces.models import RootKey as RootKeyRow
from apps.workspaces.models import Workspace as WorkspaceRow
from apps.workspaces.models import shard_of
from edge.store.records import (
    Api,
    Barrier,
    Contract,
    Identity,
    Instance,
    KeyRecord,
    Namespace,
    Override,
    Ratelimit,
    Record,
    Role,
    RootKey,
    Route,
    SealedCertificate,
    Sentinel,
    Workspace,
)
from unkey import VERSION, clock
from unkey.tenancy import unscoped, workspace_scope

log = structlog.get_logger("edge.store")

PAGE = 500
FULL = -1
_Row = dict[str, Any]
_REASON = "the edge serves every workspace"


class Table:
    """How the rows of one table become records.

    Args:
        model: the table.
        fields: columns, by the names that `build` knows them by.
        build: turns a row into a record; `linked` holds what `links` found.
        links: fetches, for a page of primary keys, what other tables add to its rows.
        sharded: the table is split over the `keys` streams by a `shard` column.
        owner: where there is no such column, the field that holds the workspace.
    """

    def __init__(
        self,
        model: type[Model],
        fields: dict[str, str],
        build: Callable[[_Row, dict[str, Any]], Record],
        *,
        links: Callable[[list[str]], dict[str, Any]] = lambda ids: {},
        sharded: bool = False,
        owner: str = "",
    ) -> None:
        self.model = model
        self.fields = {name: F(source) for name, source in fields.items() if name != source}
        self.names = ("pk", "version", *fields)
        self.build = build
        self.links = links
        self.sharded = sharded
        self.owner = owner

    def rows(self) -> Any:
        """Return a queryset of every row, as dictionaries."""
        with unscoped(_REASON):
            plain = [name for name in self.names if name not in self.fields]
            return self.model._default_manager.values(*plain, **self.fields)

    def records(self, rows: list[_Row], rejected: Callable[[str], None]) -> list[Record]:
        """Turn a page of rows into records; a row that cannot be one is reported and left out."""
        linked = self.links([row["pk"] for row in rows]) if rows else {}
        records = []
        for row in rows:
            try:
                records.append(self.build(row, linked))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self._report(row["pk"], error, rejected)
        return records

    def page(self, rows: Any, rejected: Callable[[str], None]) -> tuple[list[_Row], list[tuple[int, str]]]:
        """Read a page and where its rows stand, `(version, pk)`.

        If one row cannot even be read, the others are read one by one.
        """
        try:
            found = list(rows)
            return found, [(row["version"], row["pk"]) for row in found]
        except ValueError:
            found = []
            places = list(rows.values_list("version", "pk"))
            for _, pk in places:
                try:
                    found.extend(self.rows().filter(pk=pk))
                except ValueError as error:
                    self._report(pk, error, rejected)
            return found, places

    def _report(self, pk: str, error: Exception, rejected: Callable[[str], None]) -> None:
        table = self.model._meta.db_table
        log.error("edge.row_rejected", table=table, row=pk, error=f"{type(error).__name__}: {error}")
        rejected(table)


def _ms(moment: Any) -> int | None:
    return None if moment is None else clock.to_ms(moment)


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("not a list of texts")
    return tuple(values)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _route(row: _Row, _: dict[str, Any]) -> Route:
    return Route(
        fqdn=row["fqdn"].lower(),
        deployment_id=row["deployment_id"],
        environment_id=row["environment_id"],
        workspace_id=row["workspace_id"],
        project_id=row["project_id"],
        app_id=row["app_id"],
        version=row["version"],
        deleted=row["deleted_at"] is not None,
    )


def _sentinel(row: _Row, _: dict[str, Any]) -> Sentinel:
    if not isinstance(row["policies"], list):
        raise TypeError("policies are not a list")
    return Sentinel(
        deployment_id=row["pk"],
        workspace_id=row["workspace_id"],
        environment_id=row["environment_id"],
        policies=row["policies"],
        upstream_protocol=row["upstream_protocol"],
        desired_state=row["desired_state"],
        version=row["version"],
    )


def _contract(row: _Row, _: dict[str, Any]) -> Contract:
    return Contract(row["pk"], bytes(row["plan"]), row["fault"], row["version"])


def _barrier(row: _Row, _: dict[str, Any]) -> Barrier:
    return Barrier(
        environment_id=row["pk"],
        blocked=_texts(row["blocked"]),
        maintenance=row["maintenance"],
        message=row["message"],
        retry_after=row["retry_after"],
        exempt=_texts(row["exempt"]),
        version=row["version"],
    )


def _instance(row: _Row, _: dict[str, Any]) -> Instance:
    return Instance(
        id=row["pk"],
        deployment_id=row["deployment_id"],
        region=row["region_name"],
        address=row["address"],
        status=row["status"],
        version=row["version"],
    )


def _certificate(row: _Row, _: dict[str, Any]) -> SealedCertificate:
    return SealedCertificate(
        hostname=row["hostname"].lower(),
        chain=row["chain"],
        ciphertext=row["private_key"],
        keyring=row["keyring"],
        version=row["version"],
    )


def _workspace(row: _Row, _: dict[str, Any]) -> Workspace:
    return Workspace(row["pk"], row["enabled"], row["version"], row["requests_per_minute"])


def _root_key(row: _Row, _: dict[str, Any]) -> RootKey:
    return RootKey(
        id=row["pk"],
        hash=row["hash"],
        workspace_id=row["workspace_id"],
        permissions=_texts(row["permissions"]),
        enabled=row["enabled"],
        expires_at=_ms(row["expires_at"]),
        version=row["version"],
        deleted=row["deleted_at"] is not None,
    )


def _api(row: _Row, _: dict[str, Any]) -> Api:
    listed = (entry.strip() for entry in row["ip_whitelist"].split(","))
    return Api(
        id=row["pk"],
        workspace_id=row["workspace_id"],
        key_space_id=row["key_space_id"],
        ip_whitelist=tuple(entry for entry in listed if entry),
        version=row["version"],
        deleted=row["deleted_at"] is not None,
    )


def _identity(row: _Row, linked: dict[str, Any]) -> Identity:
    return Identity(
        id=row["pk"],
        workspace_id=row["workspace_id"],
        external_id=row["external_id"],
        meta=_mapping(row["meta"]),
        ratelimits=tuple(linked["ratelimits"][row["pk"]]),
        version=row["version"],
        deleted=row["deleted_at"] is not None,
    )


def _role(row: _Row, linked: dict[str, Any]) -> Role:
    return Role(
        id=row["pk"],
        workspace_id=row["workspace_id"],
        name=row["name"],
        permissions=tuple(linked["permissions"][row["pk"]]),
        version=row["version"],
    )


def _namespace(row: _Row, _: dict[str, Any]) -> Namespace:
    return Namespace(
        id=row["pk"],
        workspace_id=row["workspace_id"],
        name=row["name"],
        version=row["version"],
        deleted=row["deleted_at"] is not None,
    )


def _override(row: _Row, _: dict[str, Any]) -> Override:
    return Override(
        id=row["pk"],
        workspace_id=row["workspace_id"],
        namespace_id=row["namespace_id"],
        identifier=row["identifier"],
        limit=row["limit"],
        duration=row["duration_ms"],
        made_at=clock.to_ms(row["created_at"]),
        version=row["version"],
        deleted=row["deleted_at"] is not None,
    )


def _key(row: _Row, linked: dict[str, Any]) -> KeyRecord:
    return KeyRecord(
        id=row["pk"],
        hash=row["hash"],
        workspace_id=row["workspace_id"],
        key_space_id=row["key_space_id"],
        api_id=row["api_id"] or "",
        start=row["start"],
        name=row["name"],
        meta=_mapping(row["meta"]),
        enabled=row["enabled"],
        expires_at=_ms(row["expires_at"]),
        remaining=row["remaining"],
        credits_epoch=row["credits_epoch"],
        permissions=tuple(linked["permissions"][row["pk"]]),
        role_ids=tuple(linked["roles"][row["pk"]]),
        identity_id=row["identity_id"],
        ratelimits=tuple(linked["ratelimits"][row["pk"]]),
        version=row["version"],
        deleted=row["deleted_at"] is not None,
    )


def _grouped(pairs: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = defaultdict(list)
    for owner, value in pairs:
        groups[owner].append(value)
    return groups


def _ratelimits(owner: str, ids: list[str]) -> dict[str, list[Ratelimit]]:
    rows = RatelimitRow.objects.unscoped(_REASON).filter(**{f"{owner}__in": ids}).order_by("name")
    found = rows.values_list(owner, "id", "name", "limit", "duration_ms", "auto_apply")
    return _grouped((row[0], Ratelimit(*row[1:])) for row in found)


def _key_links(ids: list[str]) -> dict[str, Any]:
    permissions = KeyRow.permissions.through._default_manager.filter(key_id__in=ids)
    roles = KeyRow.roles.through._default_manager.filter(key_id__in=ids)
    return {
        "permissions": _grouped(permissions.values_list("key_id", "permission__slug")),
        "roles": _grouped(roles.order_by("role_id").values_list("key_id", "role_id")),
        "ratelimits": _ratelimits("key_id", ids),
    }


def _role_links(ids: list[str]) -> dict[str, Any]:
    through = RoleRow.permissions.through._default_manager.filter(role_id__in=ids)
    return {"permissions": _grouped(through.values_list("role_id", "permission__slug"))}


def _same(*names: str, **others: str) -> dict[str, str]:
    return {**{name: name for name in names}, **others}


ROUTES = Table(
    FrontlineRoute,
    _same("fqdn", "deployment_id", "environment_id", "workspace_id", "project_id", "app_id", "deleted_at"),
    _route,
)
SENTINELS = Table(
    SentinelRow,
    _same("workspace_id", "environment_id", "policies", "upstream_protocol", "desired_state"),
    _sentinel,
)
CONTRACTS = Table(ContractRow, _same("plan", "fault"), _contract)
BARRIERS = Table(BarrierRow, _same("blocked", "maintenance", "message", "retry_after", "exempt"), _barrier)
INSTANCES = Table(
    InstanceRow, _same("deployment_id", "address", "status", region_name="region__name"), _instance
)
CERTIFICATES = Table(CertificateRow, _same("hostname", "chain", "private_key", "keyring"), _certificate)
# Limits have no version of their own: whoever changes them stamps the workspace.
WORKSPACES = Table(
    WorkspaceRow,
    _same("enabled", requests_per_minute="limits__api_requests_per_minute"),
    _workspace,
    owner="pk",
)
ROOT_KEYS = Table(
    RootKeyRow,
    _same("hash", "workspace_id", "permissions", "enabled", "expires_at", "deleted_at"),
    _root_key,
    owner="workspace_id",
)
APIS = Table(ApiRow, _same("workspace_id", "key_space_id", "ip_whitelist", "deleted_at"), _api, sharded=True)
IDENTITIES = Table(
    IdentityRow,
    _same("workspace_id", "external_id", "meta", "deleted_at"),
    _identity,
    links=lambda ids: {"ratelimits": _ratelimits("identity_id", ids)},
    sharded=True,
)
ROLES = Table(RoleRow, _same("workspace_id", "name"), _role, links=_role_links, sharded=True)
NAMESPACES = Table(NamespaceRow, _same("workspace_id", "name", "deleted_at"), _namespace, sharded=True)
OVERRIDES = Table(
    OverrideRow,
    _same("workspace_id", "namespace_id", "identifier", "limit", "duration_ms", "created_at", "deleted_at"),
    _override,
    sharded=True,
)
KEYS = Table(
    KeyRow,
    _same(
        "hash",
        "workspace_id",
        "key_space_id",
        "start",
        "name",
        "meta",
        "enabled",
        "expires_at",
        "remaining",
        "credits_epoch",
        "identity_id",
        "deleted_at",
        api_id="key_space__api__id",
    ),
    _key,
    links=_key_links,
    sharded=True,
)

# What a key refers to comes before the key, and a namespace's overrides before the namespace: it is not
# known without them.
_BY_STREAM = {
    "routes": (ROUTES,),
    "sentinels": (BARRIERS, CONTRACTS, SENTINELS),
    "instances": (INSTANCES,),
    "certificates": (CERTIFICATES,),
    "keys": (WORKSPACES, ROOT_KEYS, APIS, ROLES, OVERRIDES, NAMESPACES, IDENTITIES, KEYS),
}


def heads() -> dict[str, int]:
    """Return the last version of every stream that edges follow."""
    return {
        name: version
        for name, version in Stream.objects.values_list("name", "version")
        if name.partition(":")[0] in _BY_STREAM
    }


def compacted() -> dict[str, int]:
    """Return, by stream, the version up to which ends of rows may have been removed.

    Who has applied less than that reads everything anew.
    """
    return dict(Stream.objects.filter(compacted__gt=0).values_list("name", "compacted"))


# A transaction's reads all see one moment; no lock is taken that a writer would wait for.
_BEGIN = {
    "sqlite": ("BEGIN DEFERRED",),
    "mysql": (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ),
}


@contextmanager
def cut() -> Iterator[dict[str, int]]:
    """Read within the block as of one moment; yields the heads of that moment.

    What is read of several streams then fits together: a route never without the policies and the
    instances that were committed before it.
    """
    with connection.cursor() as cursor:
        for statement in _BEGIN[connection.vendor]:
            cursor.execute(statement)
        try:
            yield heads()
        finally:
            cursor.execute("ROLLBACK")


def pages(
    stream: str, applied: int, head: int, key_capacity: int, rejected: Callable[[str], None]
) -> Iterator[list[Record]]:
    """Read what changed in a stream, a page of records at a time.

    Args:
        stream: its name.
        applied: the last version that was applied; `FULL`: everything.
        head: the version to stop at. Tables that several `keys` streams share are indexed by version
            alone: between two versions few rows of the other streams are in the way.
        key_capacity: most keys worth reading at once; the newest are read.
        rejected: told the table of each row that could not be read.
    """
    kind, _, shard = stream.partition(":")
    for table in _BY_STREAM[kind]:
        rows = table.rows()
        if table.sharded:
            rows = rows.filter(shard=int(shard))
        since = applied
        if applied == FULL and table in (KEYS, IDENTITIES):
            beyond = rows.order_by("-version").values_list("version", flat=True)[key_capacity:][:1]
            since = next(iter(beyond), FULL)
        if table is KEYS and applied == FULL:
            rows = rows.filter(deleted_at__isnull=True)
        last: tuple[int, str] | None = None
        while True:
            after = Q(version__gt=since, version__lte=head)
            if last is not None:
                # Rows that were stamped together share a version: a page may end between them.
                after = Q(version__gt=last[0], version__lte=head) | Q(version=last[0], pk__gt=last[1])
            query = rows.filter(after).order_by("version", "pk")[:PAGE]
            page, places = table.page(query, rejected)
            if table.owner:
                page = [row for row in page if shard_of(row[table.owner]) == int(shard)]
            if page:
                yield table.records(page, rejected)
            if len(places) < PAGE:
                break
            last = places[-1]


def by_hash(keys: list[str], root_keys: list[str], rejected: Callable[[str], None]) -> list[Record]:
    """Read keys and root keys by their hashes, with everything that they refer to, as of one moment.

    Returns:
        records, what is referred to first; nothing for a hash that no row has.
    """
    with cut():
        found = KEYS.records(list(KEYS.rows().filter(hash__in=keys)), rejected) if keys else []
        held = [key for key in found if isinstance(key, KeyRecord)]
        roots = (
            ROOT_KEYS.records(list(ROOT_KEYS.rows().filter(hash__in=root_keys)), rejected)
            if root_keys
            else []
        )
        records: list[Record] = []
        for table, ids in (
            (
                WORKSPACES,
                {key.workspace_id for key in (*held, *roots) if isinstance(key, KeyRecord | RootKey)},
            ),
            (APIS, {key.api_id for key in held}),
            (ROLES, {role_id for key in held for role_id in key.role_ids}),
            (IDENTITIES, {key.identity_id for key in held if key.identity_id}),
        ):
            if ids:
                records.extend(table.records(list(table.rows().filter(pk__in=ids)), rejected))
    return [*records, *roots, *held]


def namespace(workspace_id: str, name: str, creator: Any, rejected: Callable[[str], None]) -> list[Record]:
    """Read a namespace by its id or name, with its overrides; empty if there is none.

    Args:
        creator: as whom (an `Actor`) a missing one is made; None: it is not.
    """
    with workspace_scope(workspace_id):
        found = find_namespaces([name]).get(name)
        if found is None and creator is not None:
            found = ensure_namespace(workspace_id, name, actor=creator)
    if found is None:
        return []
    overrides = OVERRIDES.rows().filter(namespace_id=found.pk)
    return [
        *NAMESPACES.records(list(NAMESPACES.rows().filter(pk=found.pk)), rejected),
        *OVERRIDES.records(list(overrides), rejected),
    ]


def beat(edge_id: str, region: str, role: str, applied: dict[str, int], started_at: Any) -> None:
    """Tell the cluster that this edge lives and what it has applied."""
    now = clock.now()
    values = {
        "region_name": region,
        "role": role,
        "applied": applied,
        "last_seen_at": now,
        "software": VERSION,
    }
    edges = Edge.objects.filter(pk=edge_id)
    if edges.filter(started_at=started_at).update(**values):
        return
    # One of this name did not sign off: what it had counted and not told is lost.
    if not edges.update(**values, started_at=started_at, count_lost_at=now):
        Edge.objects.create(id=edge_id, **values, started_at=started_at)


def report_use(edge_id: str, until: Any, deployments: list[str]) -> None:
    """Tell which deployments had requests, and that there were no others.

    Args:
        until: up to when.
        deployments: those that had requests since this was last told.
    """
    with transaction.atomic():
        for start in range(0, len(deployments), PAGE):
            rows = SentinelRow.objects.filter(pk__in=deployments[start : start + PAGE])
            rows.filter(Q(last_request_at=None) | Q(last_request_at__lt=until)).update(last_request_at=until)
        Edge.objects.filter(pk=edge_id).update(counted_at=until)


def sign_off(edge_id: str) -> None:
    """Tell the cluster that this edge has stopped."""
    Edge.objects.filter(pk=edge_id).delete()


def live_edges(seconds: int = 10) -> int:
    """Count the edges that were heard of in the last seconds, at least one."""
    since = clock.now() - timedelta(seconds=seconds)
    return max(1, Edge.objects.filter(last_seen_at__gte=since).count())
