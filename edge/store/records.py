"""Records: what the edge knows of the database's rows, immutable, without Django.

Times are Unix milliseconds. `version` is a row's position in its stream of the change feed.
"""

from enum import Enum
from typing import Any

from msgspec import Struct


class Route(Struct, frozen=True):
    """A host name (lower case) and the deployment that answers it; stream `routes`."""

    fqdn: str
    deployment_id: str
    environment_id: str
    workspace_id: str
    project_id: str
    app_id: str
    version: int
    deleted: bool = False


class Sentinel(Struct, frozen=True):
    """What is enforced in front of a deployment; stream `sentinels`.

    Args:
        policies: as `gateway.setPolicies` stored them.
        upstream_protocol: `http1` or `h2c`.
        desired_state: `running` or `stopped`.
    """

    deployment_id: str
    workspace_id: str
    environment_id: str
    policies: list[dict[str, Any]]
    upstream_protocol: str
    desired_state: str
    version: int


class Contract(Struct, frozen=True):
    """What requests to a deployment must look like; stream `sentinels`.

    Args:
        plan: see `edge.sentinel.contract.pack`; empty: the deployment serves no OpenAPI document.
        fault: why requests cannot be checked; empty if they can.
    """

    deployment_id: str
    plan: bytes
    fault: str
    version: int


class Barrier(Struct, frozen=True):
    """What is refused before every deployment of an environment; stream `sentinels`.

    Args:
        blocked: addresses and CIDR ranges that are refused.
        maintenance: everybody else is, too, but the addresses and ranges in `exempt`.
        message: what visitors are told then; empty: the usual sentence.
        retry_after: seconds, told with it.
    """

    environment_id: str
    blocked: tuple[str, ...]
    maintenance: bool
    message: str
    retry_after: int | None
    exempt: tuple[str, ...]
    version: int


class Instance(Struct, frozen=True):
    """A copy of a deployment as its agent reported it; stream `instances`.

    Args:
        region: the region's name.
        address: `host:port`.
        status: `pending`, `running`, `failed`, `draining` or `gone`.
    """

    id: str
    deployment_id: str
    region: str
    address: str
    status: str
    version: int


class Certificate(Struct, frozen=True):
    """A certificate by host name (`*.` stands for one label); stream `certificates`.

    Args:
        chain: PEM, leaf first.
        private_key: PEM; in memory only, the disk has the vault's ciphertext.
    """

    hostname: str
    chain: str
    private_key: str
    version: int


class SealedCertificate(Struct, frozen=True):
    """A certificate as database and disk have it: its key as the vault's ciphertext.

    Args:
        keyring: the vault's key ring that `ciphertext` opens in.
    """

    hostname: str
    chain: str
    ciphertext: str
    keyring: str
    version: int


class Workspace(Struct, frozen=True, gc=False):
    """A tenant; stream `keys:<shard>`.

    Args:
        requests_per_minute: most requests of the API, None: any number.
    """

    id: str
    enabled: bool
    version: int
    requests_per_minute: int | None = None


class RootKey(Struct, frozen=True, gc=False):
    """A key that manages a workspace; `hash` is base64(SHA-256(text)); stream `keys:<shard>`."""

    id: str
    hash: str
    workspace_id: str
    permissions: tuple[str, ...]
    enabled: bool
    expires_at: int | None
    version: int
    deleted: bool = False


class Api(Struct, frozen=True, gc=False):
    """An API, found by its key space; `ip_whitelist` holds addresses and CIDR ranges."""

    id: str
    workspace_id: str
    key_space_id: str
    ip_whitelist: tuple[str, ...]
    version: int
    deleted: bool = False


class Ratelimit(Struct, frozen=True, gc=False):
    """A configured limit of a key or an identity: `limit` per `duration` milliseconds."""

    id: str
    name: str
    limit: int
    duration: int
    auto_apply: bool


class Identity(Struct, frozen=True, gc=False):
    """Who holds keys; its limits are shared among them."""

    id: str
    workspace_id: str
    external_id: str
    meta: dict[str, Any]
    ratelimits: tuple[Ratelimit, ...]
    version: int
    deleted: bool = False


class Role(Struct, frozen=True, gc=False):
    """A named set of permission slugs."""

    id: str
    workspace_id: str
    name: str
    permissions: tuple[str, ...]
    version: int


class KeyName(Struct, frozen=True):
    """A key by what permissions on it are written with."""

    id: str
    workspace_id: str
    key_space_id: str
    api_id: str


class KeyRecord(Struct, frozen=True, gc=False):
    """An API key; its API, identity, roles and workspace are referred to by id.

    Args:
        hash: base64(SHA-256(text)); the text itself is never known.
        remaining: credits that no edge has leased, None: unlimited; as last read.
        credits_epoch: leases of an earlier epoch are void.
        permissions: slugs given directly.
        role_ids: roles, whose slugs count as well.
        ratelimits: limits of the key itself.
    """

    id: str
    hash: str
    workspace_id: str
    key_space_id: str
    api_id: str
    start: str
    name: str
    meta: dict[str, Any]
    enabled: bool
    expires_at: int | None
    remaining: int | None
    credits_epoch: int
    permissions: tuple[str, ...]
    role_ids: tuple[str, ...]
    identity_id: str | None
    ratelimits: tuple[Ratelimit, ...]
    version: int
    deleted: bool = False


class Namespace(Struct, frozen=True):
    """What identifiers of standalone rate limits are counted in; stream `keys:<shard>`."""

    id: str
    workspace_id: str
    name: str
    version: int
    deleted: bool = False


class Override(Struct, frozen=True):
    """Another limit for one identifier of a namespace, or for all that match a pattern with `*`.

    Args:
        limit: most cost in `duration` milliseconds; 0 denies everything that costs.
        made_at: of several patterns that match, the one that was made first counts.
    """

    id: str
    workspace_id: str
    namespace_id: str
    identifier: str
    limit: int
    duration: int
    made_at: int
    version: int
    deleted: bool = False


class Absence(Enum):
    """Why a look-up in memory found no record."""

    UNKNOWN = "the database has no such row, as far as was last known"
    NOT_LOADED = "ask the database: `await store.fetch_key(hash)`"


Record = (
    Route
    | Sentinel
    | Contract
    | Barrier
    | Instance
    | SealedCertificate
    | Certificate
    | Workspace
    | RootKey
    | Api
    | Identity
    | Role
    | KeyRecord
    | Namespace
    | Override
)
