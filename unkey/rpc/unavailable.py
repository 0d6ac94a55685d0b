"""Published operations that have no engine behind them yet, and what each waits for.

They are known, so that a client gets a clear answer instead of "there is no such operation". One that
is declared as a route is answered by its route and leaves this table.
"""

from unkey import errors

_DOMAINS = "Custom domains are not served yet; every deployment has generated host names."
_DEPLOY = "Use deployments.{}, which replaces it."
_GITHUB = "GitHub is not connected to this installation; deploy an image or a source folder."
_BUILD_LOGS = "Builds leave no log of their own yet; deployments.listSteps says what they did."

WAITING: dict[str, str] = {
    "deploy.createDeployment": _DEPLOY.format("createDeployment"),
    "deploy.getDeployment": _DEPLOY.format("getDeployment"),
    "deployments.listBuildLogs": _BUILD_LOGS,
    "domains.createDomain": _DOMAINS,
    "domains.deleteDomain": _DOMAINS,
    "domains.getDomain": _DOMAINS,
    "domains.listDomains": _DOMAINS,
    "domains.verifyDomain": _DOMAINS,
    "github.installApp": _GITHUB,
}
"""Operation to what it waits for, and what to do meanwhile."""


def unknown(name: str) -> errors.Fault:
    """Return why an operation that no route answers is refused.

    Args:
        name: `group.operation`, as the caller wrote it.
    """
    if name in WAITING:
        return errors.OperationUnavailable(f"{name} is not available here. {WAITING[name]}")
    return errors.RouteNotFound(f"There is no operation {name[:128]!r}.")
