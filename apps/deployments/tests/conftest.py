"""A tenant with an app, snapshots to deploy, and an agent that reports what a test tells it to."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from apps.builds.models import Snapshot
from apps.cluster.models import Region
from apps.deployments import services
from apps.deployments.models import Deployment, Topology
from apps.projects.models import App, Environment, EnvironmentRegion
from apps.quota.services import set_limits
from apps.routing.models import FrontlineRoute
from apps.workflows.sweeper import drain
from unkey import objects
from unkey.actors import system
from unkey.env import env
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped, workspace_scope


def archive(**files: str) -> bytes:
    """Pack texts by file name as a source snapshot."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, text in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


@dataclass
class Platform:
    """What a test drives: the API as a tenant, the workflows, and one agent in every region."""

    tenant: Tenant
    project: str = "shop"
    app: str = "default"

    @property
    def names(self) -> dict[str, str]:
        """Project and app, as requests name them."""
        return {"project": self.project, "app": self.app}

    def snapshot(self, **files: str) -> str:
        """Store a source snapshot and return its reference."""
        content = archive(**(files or {"Procfile": "web: python app.py"}))
        digest = hashlib.sha256(content).hexdigest()
        workspace = self.tenant.workspace.id
        objects.open_store(env.OBJECT_STORE_URL).put(f"snapshots/{workspace}/{digest}", content)
        with workspace_scope(workspace):
            Snapshot.objects.get_or_create(
                workspace_id=workspace, digest=digest, defaults={"size": len(content), "files": len(files)}
            )
        return f"snapshot@sha256:{digest}"

    def create(self, environment: str = "production", image: str = "", **headers: str) -> str:
        """Ask for a deployment and return its id; nothing of it has happened yet."""
        body = {
            **self.names,
            "environment": environment,
            "image": {"dockerImage": image or self.snapshot()},
        }
        return str(self.tenant("deployments.createDeployment", body, **headers)["deploymentId"])

    def redeploy(self, earlier: str, environment: str = "production") -> str:
        """Deploy an earlier deployment's image once more, to the end."""
        body = {**self.names, "environment": environment, "deployment": {"deploymentId": earlier}}
        made = str(self.tenant("deployments.createDeployment", body)["deploymentId"])
        return self.finish(made)

    def deploy(self, environment: str = "production", image: str = "") -> str:
        """Deploy to the end."""
        return self.finish(self.create(environment, image))

    def finish(self, deployment: str) -> str:
        """Let a deployment's instances become healthy and its workflow end."""
        drain()
        self.report(deployment, "running")
        drain()
        return deployment

    def report(
        self,
        deployment: str,
        status: str,
        message: str = "",
        region: str = "",
        address: str = "127.0.0.1:1",
    ) -> None:
        """Say, as the agents of all regions or of one, that the deployment has one instance like this."""
        for topology in Topology.objects.filter(deployment_id=deployment).select_related("region"):
            if region in {"", topology.region.name}:
                services.report_instances(
                    deployment,
                    topology.region.name,
                    [
                        {
                            "name": f"{deployment}-0",
                            "address": address if status == "running" else "",
                            "status": status,
                            "message": message,
                        }
                    ],
                    "agent-1",
                )

    def report_none(self, deployment: str) -> None:
        """Say that no instance of the deployment is left anywhere."""
        for topology in Topology.objects.filter(deployment_id=deployment).select_related("region"):
            services.report_instances(deployment, topology.region.name, [], "agent-1")

    def rollback(self, to: str) -> None:
        """Roll the app back, to the end."""
        self.tenant("deployments.rollbackDeployment", {"deploymentId": to})
        drain()

    def promote(self, target: str) -> None:
        """Promote a deployment, to the end."""
        self.tenant("deployments.promoteDeployment", {"deploymentId": target})
        drain()

    def get(self, deployment: str) -> dict[str, Any]:
        """Return a deployment as the API shows it."""
        shown: dict[str, Any] = self.tenant("deployments.getDeployment", {"deploymentId": deployment})
        return shown

    def row(self, deployment: str) -> Deployment:
        """Return a deployment's row."""
        return Deployment.objects.unscoped("test").get(pk=deployment)

    def app_row(self) -> App:
        """Return the app's row."""
        return App.objects.unscoped("test").get(workspace=self.tenant.workspace, slug=self.app)

    def routes(self) -> dict[str, str]:
        """Return which deployment answers each host name of the workspace, without the apex."""
        with workspace_scope(self.tenant.workspace.id):
            rows = FrontlineRoute.objects.filter(deleted_at=None).values_list("fqdn", "deployment_id")
        suffix = f"-{self.tenant.workspace.slug}.{env.DEFAULT_DOMAIN}"
        return {fqdn.removesuffix(suffix): deployment for fqdn, deployment in rows}

    def limit(self, **limits: int) -> None:
        """Set limits of the workspace."""
        set_limits(self.tenant.workspace.id, limits, actor=system("tests"))

    def add_region(self, name: str, environment: str = "production") -> None:
        """Let an environment run in one more region."""
        with unscoped("test"):
            row = Environment.objects.get(app=self.app_row(), slug=environment)
        region, _ = Region.objects.get_or_create(name=name)
        EnvironmentRegion.objects.create(environment=row, region=region)


def make_platform(tenant: Tenant) -> Platform:
    """Make a project `shop` with the app `default`, that has been deployed nowhere yet."""
    made = Platform(tenant)
    made.limit(builds_concurrent_max=10)  # the tests of build slots set it
    tenant("projects.createProject", {"name": "Shop", "slug": made.project})
    tenant("apps.createApp", {"name": "Default", "slug": made.app, "project": made.project})
    return made


@pytest.fixture
def platform(tenant: Tenant) -> Platform:
    """A project `shop` with the app `default`, that has been deployed nowhere yet."""
    return make_platform(tenant)


@pytest.fixture
def make_app(platform: Platform) -> Callable[[str], Platform]:
    """Add an app to the project and return the platform that drives it."""

    def make(slug: str) -> Platform:
        platform.tenant("apps.createApp", {"name": slug, "slug": slug, "project": platform.project})
        return Platform(platform.tenant, app=slug)

    return make


class Programs:
    """An HTTP server that stands for an instance and for an agent: answers what a test puts in."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        answers, asked = self.answers, self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers.get("Authorization", "")))
                status, body = answers.get(self.path.partition("?")[0], (404, b""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"


@contextmanager
def serve_programs() -> Iterator[Programs]:
    """Run an HTTP server on a free port."""
    made = Programs()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def programs() -> Iterator[Programs]:
    """An HTTP server on a free port."""
    with serve_programs() as made:
        yield made
