"""Whose a host name is: nobody's name is ever taken over."""

from collections.abc import Callable

import pytest

from apps.cluster.models import Stream
from apps.deployments.models import Deployment
from apps.deployments.tests.conftest import Platform
from apps.projects.models import Environment
from apps.routing.models import FrontlineRoute, Sentinel
from apps.routing.services import write_sentinel
from unkey import clock

pytestmark = pytest.mark.django_db


def test_a_name_that_another_project_holds_stays_with_it(
    platform: Platform, make_app: Callable[[str], Platform]
) -> None:
    tenant = platform.tenant
    tenant("projects.createProject", {"name": "Shop API", "slug": "shop-api"})
    tenant("apps.createApp", {"name": "Default", "slug": "default", "project": "shop-api"})
    theirs = Platform(tenant, project="shop-api").deploy()
    assert platform.routes()["shop-api"] == theirs

    ours = make_app("api").deploy()

    routes = platform.routes()
    assert routes["shop-api"] == routes["shop-api-production"] == theirs
    mine = sorted(name for name, deployment in routes.items() if deployment == ours)
    assert len(mine) == 3
    assert sum(".unkey.localhost" in name for name in mine) == 2  # the hash comes after the workspace

    again = Platform(tenant, app="api").deploy()
    assert sorted(n for n, d in platform.routes().items() if d == again and n in mine) == [
        name for name in mine if "-d-" not in name
    ]


def test_branches_that_are_written_alike_get_names_of_their_own(platform: Platform) -> None:
    first = branch_deployment(platform, "a/b")
    second = branch_deployment(platform, "a-b")
    names = {name: deployment for name, deployment in platform.routes().items() if "git-a-b" in name}
    assert names["shop-git-a-b"] == first
    assert sorted(names.values()) == sorted([first, second])


def test_a_custom_domain_that_is_sticky_to_live_follows_along(platform: Platform) -> None:
    first = platform.deploy()
    row = platform.row(first)
    FrontlineRoute(
        workspace_id=row.workspace_id,
        project_id=row.project_id,
        app_id=row.app_id,
        environment_id=row.environment_id,
        deployment_id=row.id,
        fqdn="api.example.com",
        sticky="live",
    ).save()
    second = platform.deploy()
    assert platform.routes()["api.example.com"] == second
    platform.rollback(first)
    assert platform.routes()["api.example.com"] == first
    assert platform.get(first)["domains"][0] == "api.example.com"


def test_a_route_that_does_not_move_takes_no_version(platform: Platform) -> None:
    first, second = platform.deploy(), platform.deploy()
    platform.rollback(first)
    before = Stream.objects.get(pk="routes").version
    platform.promote(first)
    assert Stream.objects.get(pk="routes").version == before
    assert second != first


def test_a_deleted_name_is_free_again(platform: Platform) -> None:
    first = platform.deploy()
    FrontlineRoute.objects.unscoped("test").filter(sticky="live").update(
        deleted_at=clock.now(), environment=Environment.objects.unscoped("test").get(slug="preview")
    )
    second = platform.deploy()
    assert platform.routes()["shop"] == second != first


def test_a_deployment_that_has_only_local_names_gets_no_sentinel_configuration(platform: Platform) -> None:
    made = platform.row(platform.deploy())
    Sentinel.objects.all().delete()
    routes = FrontlineRoute.objects.unscoped("test")
    for route, name in zip(routes.order_by("id"), ("localhost", "shop.local", "shop.test"), strict=True):
        FrontlineRoute.objects.unscoped("test").filter(pk=route.pk).update(fqdn=name)
    assert write_sentinel(made) is None
    assert not Sentinel.objects.exists()

    routes.filter(fqdn="shop.test").update(fqdn="shop.example.com")
    written = write_sentinel(made)
    assert written is not None
    assert written.policies == made.policies
    assert write_sentinel(made) == written


def branch_deployment(platform: Platform, branch: str) -> str:
    made = platform.create("preview")
    Deployment.objects.unscoped("test").filter(pk=made).update(git_branch=branch)
    return platform.finish(made)
