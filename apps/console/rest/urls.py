"""Addresses of the dashboard REST. Everything in a workspace is below `/api/workspaces/<workspace>/`."""

from django.urls import URLPattern, include, path, re_path
from drf_spectacular.views import SpectacularSwaggerView

from apps.console.rest import (
    deployments,
    document,
    events,
    keys,
    people,
    platform,
    problems,
    projects,
    ratelimits,
)
from apps.console.rest.access import WorkspaceView

_ENVIRONMENT = "projects/<str:project>/apps/<str:app>/environments/<str:environment>"


def _workspace(tail: str, view: type[WorkspaceView]) -> URLPattern:
    return path(f"workspaces/<str:workspace>/{tail}", view.as_view())


api = [
    path("session", people.Session.as_view()),
    path("me", people.Me.as_view()),
    path("workspaces", people.Workspaces.as_view()),
    path("workspaces/<str:workspace>", people.WorkspaceDetail.as_view()),
    _workspace("members", people.Members),
    _workspace("members/<str:member>", people.Member),
    _workspace("tokens", people.Tokens),
    _workspace("tokens/<str:token>", people.Token),
    _workspace("projects", projects.Projects),
    _workspace("projects/<str:project>", projects.Project),
    _workspace("projects/<str:project>/apps", projects.Apps),
    _workspace("projects/<str:project>/apps/<str:app>", projects.AppDetail),
    _workspace("projects/<str:project>/apps/<str:app>/environments", projects.Environments),
    _workspace(_ENVIRONMENT, projects.EnvironmentDetail),
    _workspace(f"{_ENVIRONMENT}/settings", projects.Settings),
    _workspace(f"{_ENVIRONMENT}/variables", projects.Variables),
    _workspace(f"{_ENVIRONMENT}/variables/<str:key>", projects.Variable),
    _workspace(f"{_ENVIRONMENT}/variables/<str:key>/reveal", projects.Reveal),
    _workspace(f"{_ENVIRONMENT}/policies", projects.Policies),
    _workspace(f"{_ENVIRONMENT}/policies/<str:policy>", projects.Policy),
    _workspace("snapshots", deployments.Snapshots),
    _workspace("deployments", deployments.Deployments),
    _workspace("deployments/<str:deployment>", deployments.DeploymentDetail),
    _workspace("deployments/<str:deployment>/steps", deployments.Steps),
    _workspace("deployments/<str:deployment>/instances", deployments.Instances),
    _workspace("deployments/<str:deployment>/topologies", deployments.Topologies),
    _workspace("deployments/<str:deployment>/logs", deployments.Logs),
    _workspace("deployments/<str:deployment>/promote", deployments.Promote),
    _workspace("deployments/<str:deployment>/rollback", deployments.Rollback),
    _workspace("deployments/<str:deployment>/stop", deployments.Stop),
    _workspace("deployments/<str:deployment>/start", deployments.Start),
    _workspace("deployments/<str:deployment>/cancel", deployments.Cancel),
    _workspace("deployments/<str:deployment>/approve", deployments.Approve),
    _workspace("deployments/<str:deployment>/redeploy", deployments.Redeploy),
    _workspace("deployments/<str:deployment>/scheduled-change", deployments.ScheduledChange),
    _workspace("deployments/<str:deployment>/last-request", deployments.LastRequest),
    _workspace("deployments/<str:deployment>/openapi", deployments.Spec),
    _workspace("deployments/<str:deployment>/openapi/diff", deployments.Diff),
    _workspace("events/ticket", events.Ticket),
    _workspace("routes", platform.Routes),
    _workspace("regions", platform.Regions),
    _workspace("build-queue", platform.BuildQueue),
    _workspace("runs", platform.Runs),
    _workspace("runs/<str:run>", platform.RunDetail),
    _workspace("limits", platform.LimitsAndUsage),
    _workspace("audit", platform.Audit),
    _workspace("audit/export", platform.AuditExport),
    _workspace("apis", keys.Apis),
    _workspace("apis/<str:api>", keys.ApiDetail),
    _workspace("apis/<str:api>/keys", keys.Keys),
    _workspace("keys/<str:api_key>", keys.KeyDetail),
    _workspace("keys/<str:api_key>/reroll", keys.KeyReroll),
    _workspace("keys/<str:api_key>/credits", keys.KeyCredits),
    _workspace("identities", keys.Identities),
    _workspace("identities/<str:identity>", keys.IdentityDetail),
    _workspace("permissions", keys.Permissions),
    _workspace("permissions/<str:permission>", keys.PermissionDetail),
    _workspace("roles", keys.Roles),
    _workspace("roles/<str:role>", keys.RoleDetail),
    _workspace("ratelimits", ratelimits.Namespaces),
    _workspace("ratelimits/<str:namespace>", ratelimits.NamespaceDetail),
    _workspace("ratelimits/<str:namespace>/overrides", ratelimits.Overrides),
    _workspace("root-keys", keys.RootKeys),
    _workspace("root-keys/<str:root_key>", keys.RootKeyDetail),
    _workspace("root-keys/<str:root_key>/reroll", keys.RootKeyReroll),
]

urlpatterns = [
    path("api/", include(api)),
    path("api/openapi.json", document.openapi, name="openapi"),
    path(
        "api/docs",
        SpectacularSwaggerView.as_view(url_name="openapi", authentication_classes=[], permission_classes=[]),
    ),
    re_path(r"^api(?:/.*)?$", problems.nothing_here),
]
