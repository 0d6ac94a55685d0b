"""What `/api/` shows and does, through web's whole stack."""

import base64
import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from apps.audit.models import AuditLog
from apps.builds.models import Snapshot
from apps.console.models import KeptAnswer
from apps.console.rest import once, pages
from apps.console.rest.projects import Settings, _column
from apps.console.tests.conftest import Caller, Join
from apps.deployments.models import Deployment
from apps.deployments.tests.conftest import Platform, archive
from apps.projects.models import Environment, Project
from apps.quota.models import Usage
from apps.workflows.sweeper import drain
from unkey import clock, errors
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped, workspace_scope

pytestmark = pytest.mark.django_db

PRODUCTION = "projects/shop/apps/default/environments/production"


def entries(caller: Caller, event: str) -> list[AuditLog]:
    """Return the audit rows of an event in a caller's workspace."""
    with workspace_scope(caller.workspace.id):
        return list(AuditLog.objects.filter(event=event))


def place(image: str) -> dict[str, Any]:
    """Return the body that deploys an image to production."""
    return {
        "project": "shop",
        "app": "default",
        "environment": "production",
        "image": {"dockerImage": image},
    }


# -- the same services, gates and messages as /v2 -----------------------------------------------------


def test_a_project_goes_through_its_life_with_the_person_as_actor(owner: Caller):
    made = owner("POST", "projects", {"name": "Blog", "slug": "blog"})
    assert (made["name"], made["slug"], made["apps"]) == ("Blog", "blog", 0)
    assert owner("PATCH", "projects/blog", {"deleteProtection": True})["deleteProtection"] is True
    problem = owner.refused("DELETE", "projects/blog", status=412)
    assert problem["code"] == "err:unkey:application:protected_resource"
    assert problem["detail"].startswith("The project is protected against deletion. ")
    owner("PATCH", "projects/blog", {"deleteProtection": False})
    owner("DELETE", "projects/blog")
    assert owner.refused("GET", "projects/blog", status=404)["code"] == "err:unkey:data:project_not_found"
    (row,) = entries(owner, "project.delete")
    assert (row.actor_type, row.actor_id, row.actor_name) == ("user", str(owner.user.pk), "olga")


def test_bodies_are_refused_in_the_words_of_v2(owner: Caller, platform: Platform):
    body = {"slug": "x", "colour": "red"}
    there = platform.tenant.refused("projects.createProject", body, 400)["errors"]
    here = owner.refused("POST", "projects", body, status=400)["violations"]
    assert here == there
    assert {each["location"] for each in here} == {"body.colour", "body.slug", "body.name"}


def test_deploy_promote_roll_back_stop_and_start(owner: Caller, platform: Platform):
    made = owner("POST", "deployments", place(platform.snapshot()))
    assert (made["status"], made["trigger"], made["availableActions"]) == (
        "pending",
        "api",
        ["cancel", "redeploy"],
    )
    platform.finish(made["id"])
    first = owner("GET", f"deployments/{made['id']}")
    assert (first["status"], first["isCurrent"], first["error"]) == ("ready", True, None)
    assert [step["status"] for step in owner("GET", f"deployments/{made['id']}/steps")["items"]] == [
        "done"
    ] * 6
    second = platform.deploy()

    assert owner("POST", f"deployments/{made['id']}/rollback")["id"] == made["id"]
    drain()
    assert owner("GET", "projects/shop/apps/default")["currentDeploymentId"] == made["id"]
    assert owner("GET", "projects/shop/apps/default")["isRolledBack"] is True
    fate = owner("GET", f"deployments/{made['id']}/last-request")["request"]
    assert (fate["kind"], fate["state"], fate["switched"]) == ("rollback", "succeeded", True)
    problem = owner.refused("POST", f"deployments/{made['id']}/rollback", status=412)
    assert problem["code"] == "err:unkey:application:deployment_is_current"
    assert problem["detail"].startswith("The deployment is already the current deployment. ")
    owner("POST", f"deployments/{second}/promote")
    drain()
    assert owner("GET", "projects/shop/apps/default")["currentDeploymentId"] == second
    assert entries(owner, "deployment.rollback")[0].actor_name == "olga"

    preview = platform.deploy("preview")
    owner("POST", f"deployments/{preview}/stop")
    platform.report_none(preview)
    assert owner("GET", f"deployments/{preview}")["status"] == "stopped"
    owner("POST", f"deployments/{preview}/start")
    platform.finish(preview)
    assert owner("GET", f"deployments/{preview}")["status"] == "ready"
    problem = owner.refused("POST", f"deployments/{second}/stop", status=412)
    assert problem["detail"].startswith("Production deployments cannot be stopped. ")


def test_cancel_and_redeploy(owner: Caller, platform: Platform):
    waiting = platform.create()
    assert owner("POST", f"deployments/{waiting}/cancel")["status"] == "cancelled"
    again = owner("POST", f"deployments/{waiting}/redeploy")
    assert again["id"] != waiting
    assert again["image"] == owner("GET", f"deployments/{waiting}")["image"]
    problem = owner.refused("POST", f"deployments/{again['id']}/approve", status=412)
    assert problem["detail"].startswith("The deployment is not awaiting approval: it is pending. ")


def test_a_replaced_deployment_may_be_kept_running(owner: Caller, platform: Platform):
    first, _second = platform.deploy(), platform.deploy()
    scheduled = owner("GET", f"deployments/{first}")["scheduledChange"]
    assert scheduled["desiredState"] == "stopped"
    assert scheduled["dueAt"] > clock.now_ms()
    assert owner("DELETE", f"deployments/{first}/scheduled-change")["scheduledChange"] is None
    drain()
    assert owner("GET", f"deployments/{first}")["desiredState"] == "running"
    problem = owner.refused("DELETE", f"deployments/{first}/scheduled-change", status=412)
    assert problem["detail"] == "No change is scheduled for the deployment. It runs on."
    assert entries(owner, "deployment.keep")[0].actor_name == "olga"


def test_a_session_deploys_as_the_dashboard(owner: Caller, platform: Platform):
    client = Client()
    client.force_login(owner.user)
    answer = client.post(
        f"/api/workspaces/{owner.workspace.id}/deployments",
        json.dumps(place(platform.snapshot())),
        content_type="application/json",
    )
    assert (answer.status_code, answer.json()["trigger"]) == (201, "dashboard")


def test_an_upload_can_be_deployed(owner: Caller):
    content = archive(Procfile="web: python app.py")
    sent = {"Authorization": f"Bearer {owner.token}"}
    where = f"/api/workspaces/{owner.workspace.slug}/snapshots"
    answer = owner.client.generic("POST", where, content, content_type="application/gzip", headers=sent)
    assert answer.status_code == 201
    image = json.loads(answer.content)["image"]
    owner("POST", "deployments", place(image))
    wrong = owner.client.generic("POST", where, b"no archive", content_type="application/gzip", headers=sent)
    assert (wrong.status_code, json.loads(wrong.content)["code"]) == (
        400,
        "err:unkey:application:invalid_snapshot",
    )
    with workspace_scope(owner.workspace.id):
        assert Snapshot.objects.count() == 1


def test_settings_and_regions(owner: Caller):
    changed = owner(
        "PATCH",
        f"{PRODUCTION}/settings",
        {
            "memoryMib": 512,
            "vCpus": 0.5,
            "openapiSpecPath": "/openapi.json",
            "refuseBreakingChanges": True,
            "regions": [{"name": "local", "replicas": {"min": 1, "max": 3}}],
        },
    )
    assert (changed["runtime"]["memoryMib"], changed["runtime"]["vCpus"]) == (512, 0.5)
    assert changed["runtime"]["openapiSpecPath"] == "/openapi.json"
    assert changed["refuseBreakingChanges"] is True
    assert changed["regions"] == [{"name": "local", "replicas": {"min": 1, "max": 3}}]
    problem = owner.refused("PATCH", f"{PRODUCTION}/settings", {"memoryMib": 10**6}, status=400)
    assert problem["code"] == "err:unkey:application:invalid_environment_settings"
    assert problem["violations"][0]["location"] == "body.memoryMib"


def test_limits_stand_beside_what_is_used(owner: Caller, platform: Platform):
    platform.deploy()
    period = clock.now().strftime("%Y-%m")
    Usage.objects.create(workspace=owner.workspace, period=period, verifications=7, ratelimits=3)
    Usage.objects.create(workspace=owner.workspace, period="2020-01", verifications=9)
    shown = owner("GET", "limits")
    assert shown["limits"]["memoryMibMax"] == 131_072
    assert shown["limits"]["billableOperationsPerMonth"] is None
    assert shown["usage"] == {
        "projects": 1,
        "apps": 1,
        "environments": 2,
        "deploymentsRunning": 1,
        "instances": 1,
        "cpuMillicores": 250,
        "memoryMib": 256,
        "storageMib": 0,
        "builds": 0,
        "buildsWaiting": 0,
        "period": period,
        "verifications": 7,
        "ratelimits": 3,
    }


def test_every_setting_that_a_body_may_have_is_kept():
    fields = set(Settings._CHANGES.schema["properties"]) - {"vCpus", "regions"}
    columns = {field.name for field in Environment._meta.fields}
    assert {_column(field) for field in fields} <= columns


def test_an_environment_is_deleted_unless_it_is_protected(owner: Caller):
    preview = "projects/shop/apps/default/environments/preview"
    assert owner("PATCH", f"{preview}/settings", {"deleteProtection": True})["deleteProtection"] is True
    problem = owner.refused("DELETE", preview, status=412)
    assert problem["detail"].startswith("The environment is protected against deletion. ")
    owner("PATCH", f"{preview}/settings", {"deleteProtection": False})
    owner("DELETE", preview)
    drain()
    owner.refused("GET", preview, status=404)
    assert owner("GET", "limits")["usage"]["environments"] == 1


def test_values_of_variables_are_shown_only_when_revealed(owner: Caller):
    owner(
        "POST",
        f"{PRODUCTION}/variables",
        {
            "variables": [
                {"key": "OPEN", "value": "v1", "kind": "recoverable"},
                {"key": "SHUT", "value": "v2"},
            ]
        },
    )
    listed = owner("GET", f"{PRODUCTION}/variables")["items"]
    assert {each["key"] for each in listed} == {"OPEN", "SHUT"}
    assert all("value" not in each for each in listed)
    answer = owner.send("POST", f"{PRODUCTION}/variables/OPEN/reveal")
    assert answer.body == {"key": "OPEN", "value": "v1"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert entries(owner, "variable.reveal")[0].targets[0]["name"] == "OPEN"
    owner.refused("POST", f"{PRODUCTION}/variables/SHUT/reveal", status=412)
    owner.refused("POST", f"{PRODUCTION}/variables/NONE/reveal", status=404)
    assert len(entries(owner, "variable.reveal")) == 1
    owner("DELETE", f"{PRODUCTION}/variables/SHUT")
    owner.refused("DELETE", f"{PRODUCTION}/variables/SHUT", status=404)


def test_hashes_of_passwords_are_shown_only_to_those_who_may_change_them(owner: Caller, join: Join):
    hashed = "$2b$04$abcdefghijklmnopqrstuuxHlnPWYDUnV.t7TgEyJ8PSBwvMjIhfm"
    policy = {
        "name": "door",
        "enabled": True,
        "basicauth": {"credentials": [{"username": "ann", "passwordHash": hashed}]},
    }
    kept = owner("PUT", f"{PRODUCTION}/policies", {"policies": [policy]})["items"]
    assert owner("GET", f"{PRODUCTION}/policies")["items"] == kept
    viewer = join(owner.workspace, "viewer")
    (shown,) = viewer("GET", f"{PRODUCTION}/policies")["items"]
    assert shown["basicauth"] == {"credentials": [{"username": "ann", "passwordHash": ""}]}


# -- lists --------------------------------------------------------------------------------------------


def test_pages_neither_repeat_nor_miss_while_rows_come(owner: Caller):
    for number in range(5):
        owner("POST", "projects", {"name": str(number), "slug": f"p-{number}"})
    first = owner("GET", "projects?limit=2")
    owner("POST", "projects", {"name": "late", "slug": "late"})
    second = owner("GET", f"projects?limit=2&cursor={first['nextCursor']}")
    third = owner("GET", f"projects?limit=2&cursor={second['nextCursor']}")
    found = [each["slug"] for page in (first, second, third) for each in page["items"]]
    assert found == ["p-4", "p-3", "p-2", "p-1", "p-0", "shop"]
    assert third["nextCursor"] is None


def test_rows_of_one_moment_are_told_apart(owner: Caller):
    with workspace_scope(owner.workspace.id):
        moment = clock.now()
        Project.objects.bulk_create(
            Project(workspace=owner.workspace, name=str(n), slug=f"same-{n}", created_at=moment)
            for n in range(7)
        )
    found, cursor = [], ""
    while cursor is not None:
        page = owner(
            "GET",
            f"projects?search=same&limit=3&cursor={cursor}" if cursor else "projects?search=same&limit=3",
        )
        found += [each["slug"] for each in page["items"]]
        cursor = page["nextCursor"]
    assert sorted(found) == [f"same-{n}" for n in range(7)]


def test_filters_of_deployments(owner: Caller, platform: Platform):
    live, preview = platform.deploy(), platform.deploy("preview")
    waiting = platform.create()

    def listed(query: str) -> set[str]:
        return {each["id"] for each in owner("GET", f"deployments?{query}")["items"]}

    assert listed("") == {live, preview, waiting}
    assert listed("status=ready&status=failed") == {live, preview}
    assert listed("status=ready,pending&environment=production") == {live, waiting}
    assert listed("environment=preview&project=shop&app=default") == {preview}
    assert listed("project=other") == set()
    assert listed(f"search={live[:8].upper()}") == {live}
    made = owner("GET", f"deployments/{preview}")["createdAt"]
    assert listed(f"since={made + 1}") == {waiting}
    problem = owner.refused("GET", "deployments?status=green&since=yesterday&limit=0", status=400)
    assert {each["location"] for each in problem["violations"]} == {
        "query.status",
        "query.since",
        "query.limit",
    }


def test_lists_take_as_many_queries_for_many_rows_as_for_few(owner: Caller, platform: Platform, join: Join):
    paths = ("deployments", "projects", "projects/shop/apps", "routes", "runs", "audit", "members", "tokens")

    def counts() -> dict[str, int]:
        found = {}
        for path in paths:
            with CaptureQueriesContext(connection) as captured:
                owner("GET", path)
            found[path] = len(captured)
        return found

    platform.deploy()
    platform.deploy()
    owner("GET", "/api/me")
    few = counts()
    for number in range(3):
        platform.deploy()
        join(owner.workspace, "member")
        owner("POST", "projects", {"name": "more", "slug": f"more-{number}"})
        owner("POST", "projects/shop/apps", {"name": "more", "slug": f"more-{number}"})
    assert counts() == few
    assert max(few.values()) <= 10


def test_an_answer_that_has_not_changed_is_not_sent_again(owner: Caller):
    first = owner.send("GET", "projects/shop")
    again = owner.send("GET", "projects/shop", **{"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, None)
    owner("PATCH", "projects/shop", {"name": "Renamed"})
    changed = owner.send("GET", "projects/shop", **{"If-None-Match": first.headers["ETag"]})
    assert (changed.status, changed.body["name"]) == (200, "Renamed")


@given(st.text(max_size=80))
def test_cursors_of_others_making_are_refused(text: str):
    with pytest.raises(errors.InvalidInput):
        pages._decode(f"{text}!")


@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
)
def test_cursors_of_the_right_letters_are_refused_or_read(value: Any):
    text = base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
    try:
        at, pk = pages._decode(text)
    except errors.InvalidInput:
        return
    assert value == [(at - clock.EPOCH) // timedelta(microseconds=1), pk]


# -- once ---------------------------------------------------------------------------------------------


def test_a_repeated_request_does_nothing_and_gets_the_first_answer(owner: Caller, platform: Platform):
    body = place(platform.snapshot())
    first = owner.send("POST", "deployments", body, **{"Idempotency-Key": "one"})
    again = owner.send("POST", "deployments", body, **{"Idempotency-Key": "one"})
    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    other = owner.send("POST", "deployments", body, **{"Idempotency-Key": "two"})
    assert other.body["id"] != first.body["id"]
    with unscoped("test"):
        assert Deployment.objects.count() == 2


def test_a_key_is_of_one_request_and_of_one_person(owner: Caller, join: Join):
    owner("POST", "projects", {"name": "A", "slug": "aaa"}, **{"Idempotency-Key": "k"})
    problem = owner.refused(
        "POST", "projects", {"name": "B", "slug": "bbb"}, status=409, **{"Idempotency-Key": "k"}
    )
    assert problem["code"] == "err:unkey:application:idempotency_key_reused"
    other = join(owner.workspace, "member")
    assert (
        other("POST", "projects", {"name": "B", "slug": "bbb"}, **{"Idempotency-Key": "k"})["slug"] == "bbb"
    )
    problem = owner.refused("POST", "projects", {}, status=400, **{"Idempotency-Key": "ü"})
    assert problem["violations"][0]["location"] == "header.Idempotency-Key"


def test_refusals_are_kept_with_nothing_done(owner: Caller):
    body = {"name": "Shop", "slug": "shop"}
    first = owner.refused("POST", "projects", body, status=409, **{"Idempotency-Key": "k"})
    again = owner.refused("POST", "projects", body, status=409, **{"Idempotency-Key": "k"})
    assert first == again


def test_a_key_may_be_used_again_after_a_day(owner: Caller):
    owner("POST", "projects", {"name": "A", "slug": "aaa"}, **{"Idempotency-Key": "k"})
    KeptAnswer.objects.update(created_at=clock.now() - once.KEPT_FOR - timedelta(seconds=1))
    owner("POST", "projects", {"name": "B", "slug": "bbb"}, **{"Idempotency-Key": "k"})
    assert KeptAnswer.objects.count() == 1
    KeptAnswer.objects.update(created_at=clock.now() - once.KEPT_FOR - timedelta(seconds=1))
    assert once.prune() == 1


def test_a_failure_of_ours_is_not_kept(owner: Caller, monkeypatch: pytest.MonkeyPatch):
    from apps.projects import services

    def fails(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(services, "create_project", fails)
        problem = owner.refused(
            "POST", "projects", {"name": "A", "slug": "aaa"}, status=500, **{"Idempotency-Key": "k"}
        )
        assert "broken" not in json.dumps(problem)
    assert KeptAnswer.objects.count() == 0
    owner("POST", "projects", {"name": "A", "slug": "aaa"}, **{"Idempotency-Key": "k"})


@pytest.mark.django_db(transaction=True)
def test_duplicates_at_the_same_time_do_one_thing(owner: Caller):
    answers = []
    start = threading.Barrier(4)

    def ask() -> None:
        try:
            start.wait()
            body = {"name": "Once", "slug": "once"}
            client = Client(raise_request_exception=False)
            caller = Caller(owner.workspace, owner.user, owner.token, client)
            answers.append(caller.send("POST", "projects", body, **{"Idempotency-Key": "k"}))
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [201] * 4
    assert len({answer.body["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 3
    assert len(entries(owner, "project.create")) == 2  # of `shop`, and this one


# -- people -------------------------------------------------------------------------------------------


@pytest.fixture
def browser(owner: Caller) -> Client:
    """A browser that heeds CSRF, and a password for the owner."""
    owner.user.set_password("correct horse battery")
    owner.user.save()
    return Client(enforce_csrf_checks=True)


def sign_in(browser: Client, password: str, username: str = "olga") -> Any:
    """Log in as a page does."""
    token = browser.get("/api/session").json()["csrfToken"]
    return browser.post(
        "/api/session",
        json.dumps({"username": username, "password": password}),
        content_type="application/json",
        headers={"X-CSRFToken": token},
    )


def test_a_page_logs_in_acts_and_logs_out(browser: Client, owner: Caller):
    body = json.dumps({"username": "olga", "password": "correct horse battery"})
    forged = browser.post("/api/session", body, content_type="application/json")
    assert (forged.status_code, forged.json()["code"]) == (403, "err:unkey:authentication:csrf_failed")
    answer = sign_in(browser, "correct horse battery")
    assert answer.json()["user"] == {"id": owner.user.pk, "username": "olga"}
    where = f"/api/workspaces/{owner.workspace.slug}/projects"
    project = json.dumps({"name": "Blog", "slug": "blog"})
    refused = browser.post(where, project, content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (403, "err:unkey:authentication:csrf_failed")
    csrf = {"X-CSRFToken": answer.json()["csrfToken"]}
    assert browser.post(where, project, content_type="application/json", headers=csrf).status_code == 201
    assert browser.get("/api/me").json()["via"] == "session"
    assert browser.delete("/api/session", headers=csrf).status_code == 204
    assert browser.get(where).status_code == 401


def test_guessing_passwords_is_slow(browser: Client):
    codes = [sign_in(browser, "wrong").status_code for _ in range(10)]
    assert codes == [401] * 10
    stopped = sign_in(browser, "correct horse battery")
    assert (stopped.status_code, stopped.headers["Retry-After"]) == (429, "300")
    assert stopped.json()["code"] == "err:user:too_many_requests:login_rate_limited"
    with clock.shifted(timedelta(minutes=5, seconds=1)):
        assert sign_in(browser, "correct horse battery").status_code == 200


def test_members_come_change_and_go_with_their_tokens(owner: Caller):
    nina = User.objects.create(username="nina")
    made = owner("POST", "members", {"username": "nina", "role": "admin"})
    assert made["user"] == {"id": nina.pk, "username": "nina"}
    assert owner.refused("POST", "members", {"username": "nina", "role": "admin"}, status=409)["detail"] == (
        "nina is a member of the workspace already."
    )
    problem = owner.refused("POST", "members", {"username": "nobody", "role": "viewer"}, status=400)
    assert problem["violations"][0]["location"] == "body.username"
    own = next(each for each in owner("GET", "members")["items"] if each["role"] == "owner")
    for method, body in (("DELETE", None), ("PATCH", {"role": "viewer"})):
        problem = owner.refused(method, f"members/{own['id']}", body, status=412)
        assert problem["detail"] == "A workspace keeps at least one owner. Make somebody else one first."
    owner("PATCH", f"members/{made['id']}", {"role": "viewer"})
    owner("DELETE", f"members/{made['id']}")
    assert [each["user"]["username"] for each in owner("GET", "members")["items"]] == ["olga"]


def test_nobody_gives_more_than_they_have(owner: Caller, join: Join):
    admin = join(owner.workspace, "admin")
    User.objects.create(username="nina")
    problem = admin.refused("POST", "members", {"username": "nina", "role": "owner"}, status=403)
    assert problem["detail"] == "Your role admin may not grant or change the role owner."
    own = next(each for each in admin("GET", "members")["items"] if each["role"] == "owner")
    admin.refused("DELETE", f"members/{own['id']}", status=403)
    viewer = join(owner.workspace, "viewer")
    expires = clock.now_ms() + 60_000
    body = {"name": "mine", "role": "admin", "expiresAt": expires}
    viewer.refused("POST", "tokens", body, status=403)


def test_tokens_work_until_they_are_revoked_expire_or_their_person_leaves(owner: Caller, join: Join):
    member = join(owner.workspace, "member")
    body = {"name": "ci", "role": "viewer", "expiresAt": clock.now_ms() + 3_600_000}
    first = member.send("POST", "tokens", body, **{"Idempotency-Key": "k"}).body
    assert first["plaintext"].startswith("unkey_pat_")
    again = member.send("POST", "tokens", body, **{"Idempotency-Key": "k"}).body
    assert again == {**first, "plaintext": None}
    narrow = Caller(member.workspace, member.user, first["plaintext"])
    assert narrow("GET", "projects")["items"]
    narrow.refused("POST", "projects", {"name": "A", "slug": "aaa"}, status=403)
    with clock.shifted(timedelta(hours=2)):
        assert narrow.refused("GET", "projects", status=401)["code"] == (
            "err:unkey:authentication:invalid_credentials"
        )
    other = join(owner.workspace, "member")
    other.refused("DELETE", f"tokens/{first['id']}", status=404)
    member("DELETE", f"tokens/{first['id']}")
    narrow.refused("GET", "projects", status=401)
    assert "plaintext" not in json.dumps(member("GET", "tokens"))
    place = next(each for each in owner("GET", "members")["items"] if each["user"]["id"] == member.user.pk)
    owner("DELETE", f"members/{place['id']}")
    member.refused("GET", "projects", status=401)


def test_a_token_is_of_one_workspace(owner: Caller, stranger: Tenant, join: Join):
    elsewhere = join(stranger.workspace, "owner")
    with workspace_scope(stranger.workspace.id):
        from apps.workspaces.models import Membership

        Membership.objects.create(workspace=stranger.workspace, user=owner.user, role="owner")
    found = owner("GET", "/api/workspaces")["items"]
    assert [each["id"] for each in found] == [owner.workspace.id]
    owner.refused("GET", f"/api/workspaces/{stranger.workspace.id}", status=404)
    assert elsewhere("GET", "")["role"] == "owner"


def test_a_disabled_workspace_can_be_looked_at_and_not_changed(owner: Caller):
    owner.workspace.enabled = False
    owner.workspace.save()
    assert owner("GET", "")["enabled"] is False
    problem = owner.refused("POST", "projects", {"name": "A", "slug": "aaa"}, status=403)
    assert problem["code"] == "err:unkey:authorization:workspace_disabled"


# -- the document -------------------------------------------------------------------------------------


def test_addresses_that_mean_nothing_are_problems_too(client: Client):
    for path in ("/api", "/api/", "/api/nothing", "/api/workspaces/a/b/c/d"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json"), path
        assert answer.json()["code"] == "err:user:bad_request:route_not_found"


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b'{"name": "\\ud800"}', b"[" * 100_000, b'{"name": NaN}'])
def test_what_is_no_json_is_refused(raw: bytes, owner: Caller):
    where = f"/api/workspaces/{owner.workspace.slug}/projects"
    sent = {"Authorization": f"Bearer {owner.token}"}
    answer = owner.client.generic("POST", where, raw, content_type="application/json", headers=sent)
    assert answer.status_code == 400
    text = owner.client.generic("POST", where, b"name=x", content_type="text/plain", headers=sent)
    assert text.status_code == 415


@pytest.mark.parametrize(
    "name", ["%00", "%ED%A0%80", "%F0%9F%92%A9", "'\";--", "x" * 3000, "..", "%25", "%0A"]
)
def test_odd_names_are_not_found_or_refused(name: str, owner: Caller):
    for path in (
        f"projects/{name}",
        f"projects/shop/apps/{name}",
        f"projects/shop/apps/default/environments/{name}",
        f"{PRODUCTION}/variables/{name}/reveal",
        f"deployments/{name}",
        f"runs/{name}",
        f"deployments?project={name}",
        f"deployments?search={name}",
        f"audit?search={name}&actor={name}",
        f"runs?deployment={name}",
        f"projects?cursor={name}",
    ):
        method = "POST" if path.endswith("reveal") else "GET"
        assert owner.send(method, path).status in (200, 400, 404), path
    assert owner.send("GET", f"/api/workspaces/{name}").status == 404


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer unkey_pat_", "Basic x", "Bearer unkey_pat_\xff", "unkey_pat_x"]
)
def test_odd_credentials_are_refused(header: str, owner: Caller):
    problem = owner.refused("GET", "projects", status=401, Authorization=header)
    assert problem["code"] == "err:unkey:authentication:invalid_credentials"
