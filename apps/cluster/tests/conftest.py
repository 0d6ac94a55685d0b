"""A deployment whose topology satellites watch, without the workflows that would make one."""

from collections.abc import Callable

import pytest
from django.db import transaction

from apps.cluster.models import Region
from apps.cluster.services import ensure_region
from apps.cluster.versions import stamp
from apps.deployments.models import Deployment, Topology
from apps.projects.models import App, Environment, Project
from apps.vault import services as vault
from apps.workspaces.models import Workspace
from unkey.env import env
from unkey.tenancy import unscoped

Place = Callable[..., Topology]


@pytest.fixture
def bearer() -> dict[str, str]:
    """Headers of an agent's request."""
    return {"Authorization": f"Bearer {env.secret('AGENT_TOKEN')}"}


@pytest.fixture
def environment(db: None) -> Environment:
    """An environment in a workspace of its own."""
    with unscoped("test"):
        workspace = Workspace.objects.create(name="Acme", slug="acme")
        project = Project.objects.create(workspace=workspace, name="Shop", slug="shop")
        app = App.objects.create(workspace=workspace, project=project, name="Web", slug="web")
        return Environment.objects.create(workspace=workspace, app=app, slug="production", kind="production")


@pytest.fixture
def place(environment: Environment) -> Place:
    """Return a function that lets a new deployment run in a region, or changes what one should do."""

    def run(
        region: str = "local", desired: str = "running", deployment: str = "", **variables: str
    ) -> Topology:
        with unscoped("test"), transaction.atomic():
            where: Region = ensure_region(region)
            row = Topology.objects.filter(deployment_id=deployment, region=where).first()
            if row is None:
                made = Deployment.objects.create(
                    workspace_id=environment.workspace_id,
                    project_id=environment.app.project_id,
                    app=environment.app,
                    environment=environment,
                    image="snapshot@sha256:" + "0" * 64,
                    settings={"memoryMib": 256},
                    regions=[{"region": region, "min": 1, "max": 1}],
                    variables=[
                        {"key": key, "ciphertext": vault.encrypt(environment.id, value)}
                        for key, value in sorted(variables.items())
                    ],
                    plan={"kind": "command", "command": ["true"], "install": None},
                )
                row = Topology(deployment=made, region=where)
            row.desired_status = desired
            stamp(row)
            row.save()
            return row

    return run
