"""Generated host names: one label below the default domain, at most 63 octets, stable.

Pure. The five kinds are those of the platform's documentation: commit, branch, environment, live
and deployment.
"""

import hashlib
import re
from dataclasses import dataclass

from apps.routing.models import FrontlineRoute

MAX_LABEL = 63  # octets, RFC 1035 section 2.3.4
_HASH = 8

Sticky = FrontlineRoute.Sticky


@dataclass(frozen=True, slots=True)
class Domain:
    """A host name that a deployment asks for, and what makes it move to the next deployment.

    Args:
        fqdn: the host name, in lower case.
        sticky: which later deployments take it over.
        owner: what tells two names apart that were written alike ("a/b" and "a-b").
    """

    fqdn: str
    sticky: FrontlineRoute.Sticky
    owner: str


@dataclass(frozen=True, slots=True)
class Names:
    """What host names are made of.

    Args:
        workspace, project, app, environment: slugs.
        deployment: id.
        production: whether the environment is the production one.
        commit: full commit SHA, or empty.
        branch: branch, or empty.
        fork: `owner/name` of the fork that the source came from, or empty.
        from_cli: the CLI deploys one commit many times, so each gets a commit name of its own.
        apex: the default domain.
    """

    workspace: str
    project: str
    app: str
    environment: str
    deployment: str
    production: bool
    commit: str
    branch: str
    fork: str
    from_cli: bool
    apex: str


def slug(text: str) -> str:
    """Write a text in lower-case letters, digits and single inner hyphens.

    A text that has none of these becomes a hash of itself, so that it still names something.
    """
    written = "-".join(re.findall(r"[a-z0-9]+", text.lower()))
    return written or _digest(text)


def label(text: str) -> str:
    """Return a DNS label of at most 63 octets; what is longer is cut and gets a hash of the whole."""
    if len(text) <= MAX_LABEL:
        return text
    return f"{text[: MAX_LABEL - _HASH - 1].rstrip('-')}-{_digest(text)}"


def is_local(fqdn: str, apex: str) -> bool:
    """Say whether a host name means something on one machine or network alone.

    `localhost`, and what is below `.local` (RFC 6762) and `.test` (RFC 6761); not the names below the
    installation's own domain, whatever that is.
    """
    if fqdn == apex or fqdn.endswith(f".{apex}"):
        return False
    return fqdn == "localhost" or fqdn.endswith((".local", ".test"))


def apart(domain: Domain) -> Domain:
    """Return the same kind of name for one whose plain form belongs to somebody else."""
    first, _, rest = domain.fqdn.partition(".")
    mark = _digest(f"{domain.fqdn} {domain.owner}")
    return Domain(f"{first[: MAX_LABEL - _HASH - 1].rstrip('-')}-{mark}.{rest}", domain.sticky, domain.owner)


def generated(names: Names, environment_id: str) -> list[Domain]:
    """Return the host names of a deployment, in the order commit, branch, environment, live, deployment."""
    prefix = slug(names.project)
    if names.app.lower() != "default":
        prefix += f"-{slug(names.app)}"
    if names.fork:
        prefix += f"-fork-{slug(names.fork.partition('/')[0])}"
    workspace = slug(names.workspace)

    def domain(middle: str, sticky: FrontlineRoute.Sticky, owner: str = "") -> Domain:
        text = f"{prefix}-{middle}-{workspace}" if middle else f"{prefix}-{workspace}"
        return Domain(f"{label(text)}.{names.apex}", sticky, f"{environment_id} {sticky} {owner}")

    found: list[Domain] = []
    if names.commit:
        own = f"-{slug(names.deployment)[-4:]}" if names.from_cli else ""
        found.append(domain(f"git-{names.commit[:7].lower()}{own}", Sticky.NONE))
    if names.branch:
        found.append(domain(f"git-{slug(names.branch)}", Sticky.BRANCH, names.branch))
    found.append(domain(slug(names.environment), Sticky.ENVIRONMENT))
    if names.production:
        found.append(domain("", Sticky.LIVE))
    found.append(domain(slug(names.deployment), Sticky.DEPLOYMENT, names.deployment))
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH]
