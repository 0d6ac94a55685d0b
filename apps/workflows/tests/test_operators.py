"""What operators see and do: timelines, the admin's list and buttons, `manage.py workflows`, metrics."""

import json
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from urllib.parse import urlencode

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import OperationalError, connection
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from apps.workflows import history, metrics, trail
from apps.workflows.counters import Counters
from apps.workflows.engine import State, WorkflowRun, start
from apps.workflows.sweeper import drain
from apps.workflows.tests import flows
from apps.workflows.timeline import duration, timeline
from unkey import clock
from unkey.env import env

pytestmark = pytest.mark.django_db


def ended(run: WorkflowRun) -> WorkflowRun:
    """Drive everything, with time for the pauses between attempts, and return the run as it is now."""
    for seconds in range(5):
        with clock.shifted(timedelta(seconds=seconds)):
            drain()
    run.refresh_from_db()
    return run


@pytest.fixture
def stuck() -> WorkflowRun:
    """A run whose compensation keeps failing."""
    return ended(start(flows.UndoesBadly, {"k": "a", "name": "r"}, workspace_id="ws_1"))


@pytest.fixture
def failed() -> WorkflowRun:
    """A run that failed and was undone."""
    return ended(start(flows.Refuses, {"k": "b", "name": "f"}))


@pytest.fixture
def onlooker(client: Client) -> Client:
    """A member of the staff who may only look."""
    user = get_user_model().objects.create_user("eve", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_workflowrun"))
    client.force_login(user)
    return client


def page(run: WorkflowRun) -> str:
    return reverse("admin:workflows_workflowrun_change", args=[run.id])


def button(run: WorkflowRun, operation: str) -> str:
    return reverse("admin:workflows_workflowrun_operate", args=[run.id, operation])


def said(browser: Client, url: str) -> list[str]:
    """Press a button and return what the next page says."""
    return [str(message) for message in browser.post(url, follow=True).context["messages"]]


def test_the_timeline_tells_a_run_that_failed_was_undone_resumed_and_retried(stuck: WorkflowRun) -> None:
    flows.UndoesBadly.undo_by_name, before = {"one": flows.undo("one")}, flows.UndoesBadly.undo_by_name
    try:
        with clock.shifted(timedelta(seconds=10)):
            history.resume(stuck.id, by="ada")
            run = ended(stuck)
    finally:
        flows.UndoesBadly.undo_by_name = before
    assert run.state == State.FAILED
    again = history.retry(run.id, by="ada")
    run.refresh_from_db()
    told = [(entry.kind, entry.title, entry.detail) for entry in timeline(run)]
    kinds = [kind for kind, _, _ in told]
    assert kinds[0] == "created"
    assert ("step", "one", "") in told
    assert ("compensation", "undo one", "") in told
    assert ("resumed", "resumed", "by ada") in told
    assert [entry.run_id for entry in timeline(run) if entry.kind == "retried_as"] == [again.id]
    assert [entry.run_id for entry in timeline(again) if entry.kind == "retry_of"] == [run.id]
    assert {"failed", "undo", "attention"} <= set(kinds)
    assert kinds.index("undo") < kinds.index("attention") < kinds.index("resumed") < kinds.index("ended")
    failures = [detail for kind, _, detail in told if kind == "failed"]
    assert failures[0].startswith("no_way: It cannot be done.")
    assert "RuntimeError: the undoing fails" in failures[1]


@pytest.mark.parametrize("step_ended", [849_760, 851_200])
def test_what_happened_in_one_round_of_a_worker_stands_in_the_order_of_events(
    admin_client: Client, stuck: WorkflowRun, step_ended: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trail has the time of the round, cut to milliseconds; the journal has microseconds."""
    flows.UndoesBadly.undo_by_name, before = {"one": flows.undo("one")}, flows.UndoesBadly.undo_by_name
    try:
        with clock.shifted(timedelta(seconds=10)):
            history.resume(stuck.id)
            run = ended(stuck)
    finally:
        flows.UndoesBadly.undo_by_name = before
    second = run.created_at.replace(microsecond=0) + timedelta(seconds=1)

    def at(microseconds: int) -> datetime:
        return second + timedelta(microseconds=microseconds)

    run.journal.filter(kind="step", name="one").update(started_at=at(849_300), ended_at=at(step_ended))
    run.journal.filter(kind="compensation").update(started_at=at(849_300), ended_at=at(2_000_900))
    trail = [{**each, "at": clock.to_ms(at(849_300))} for each in run.trail or []]
    finished = {"created_at": at(849_100), "finished_at": at(2_000_950), "trail": trail}
    WorkflowRun.objects.filter(id=run.id).update(**finished)
    run.refresh_from_db()
    told = [entry.title for entry in timeline(run)]
    failures = told.count("undo one failed")
    assert failures
    assert told == [
        "created",
        "one",
        "refuse failed",
        "turned round: what was done is undone",
        "undo one",
        *["undo one failed"] * failures,
        "stopped: needs attention",
        "resumed",
        "failed",
    ]
    assert [entry.title for entry in admin_client.get(page(run)).context["entries"]] == told
    call_command("workflows", "show", run.id)
    shown = capsys.readouterr().out
    assert shown.index("  one  ") < shown.index("refuse failed") < shown.index("  undo one  ")


def test_the_timeline_shows_waits_and_children() -> None:
    child_input = {"k": "c", "name": "child", "topic": "never"}
    run = ended(start(flows.Parent, {"child": "test-listens", "child_input": child_input}))
    child = WorkflowRun.objects.get(parent_id=run.id)
    entries = timeline(run)
    (wait,) = [entry for entry in entries if entry.kind == "wait"]
    assert (wait.title, wait.detail, wait.going_on) == ("ask_child waits", f"for run:{child.id}", True)
    assert [entry.run_id for entry in entries if entry.kind == "child"] == [child.id]
    assert all(0 <= entry.start <= 100 and 0 <= entry.width <= 100 for entry in entries)


@given(
    st.lists(
        st.tuples(st.sampled_from([trail.What.FAILED, trail.What.WAIT]), st.sampled_from("ab")), max_size=200
    )
)
def test_a_trail_keeps_its_first_and_its_latest_entries_and_counts_the_others(
    entries: list[tuple[trail.What, str]],
) -> None:
    kept: list[dict[str, object]] = []
    for what, step in entries:
        kept = trail.added(kept, what, clock.now(), step)
    assert len(kept) <= trail.LIMIT
    counted = sum(int(str(each.get("count", 1))) + int(str(each.get("again", 0))) for each in kept)
    if not any(each["what"] == trail.What.OMITTED for each in kept):
        assert counted == len(entries)
    if entries:
        assert (kept[-1]["what"], kept[-1]["step"]) == entries[-1]
        assert (kept[0]["what"], kept[0]["step"]) == entries[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (3.44, "3.4 s"), (320, "5 min 20 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_durations_are_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_page_of_a_run_shows_its_timeline_and_what_may_be_done(
    admin_client: Client, stuck: WorkflowRun
) -> None:
    shown = admin_client.get(page(stuck))
    from_the_list = reverse("admin:workflows_workflowrun_change", args=[quote(stuck.id)])
    assert "wf-line" in admin_client.get(from_the_list).content.decode()
    text = shown.content.decode()
    assert shown.status_code == 200
    assert "no_way" in text
    assert "needs attention" in text.lower()
    assert [name for name, _ in shown.context["operations"]] == ["resume", "give_up"]
    assert button(stuck, "give_up") in text
    assert (
        admin_client.get(reverse("admin:workflows_workflowrun_change", args=["run_none"])).status_code == 302
    )


def test_buttons_do_what_they_say_in_the_persons_name(admin_client: Client, stuck: WorkflowRun) -> None:
    assert said(admin_client, button(stuck, "give_up")) == [f"{stuck.id} has ended; its key is free"]
    stuck.refresh_from_db()
    assert stuck.state == State.FAILED
    assert (stuck.trail or [])[-1]["text"] == "by admin"
    assert LogEntry.objects.get().object_id == stuck.id
    (retried,) = said(admin_client, button(stuck, "retry"))
    made = WorkflowRun.objects.exclude(id=stuck.id).get()
    assert retried == f"{stuck.id} is tried again as {made.id}"
    assert said(admin_client, button(made, "cancel")) == [
        f"{made.id} stops at its next boundary, and what it did is undone"
    ]
    assert ended(made).state == State.CANCELLED


def test_what_makes_no_sense_is_refused_in_words(admin_client: Client, failed: WorkflowRun) -> None:
    assert said(admin_client, button(failed, "resume")) == [f"{failed.id} is failed: nothing to resume"]
    assert said(admin_client, button(failed, "give_up")) == [
        f"{failed.id} is failed: only a run that needs attention can be given up"
    ]
    assert said(admin_client, button(failed, "cancel")) == [
        f"{failed.id} has ended, or is already being undone: nothing to cancel"
    ]
    assert admin_client.post(button(failed, "destroy")).status_code == 404
    assert admin_client.get(button(failed, "retry")).status_code == 405
    assert WorkflowRun.objects.count() == 1


def test_who_may_only_look_sees_no_button_and_is_refused(onlooker: Client, stuck: WorkflowRun) -> None:
    shown = onlooker.get(page(stuck))
    assert (shown.status_code, shown.context["operations"]) == (200, [])
    assert onlooker.post(button(stuck, "give_up")).status_code == 403
    listed = onlooker.get(reverse("admin:workflows_workflowrun_changelist"))
    assert "give_up_runs" not in listed.content.decode()
    stuck.refresh_from_db()
    assert stuck.state == State.NEEDS_ATTENTION


def test_the_list_is_filtered_searched_and_acted_on(
    admin_client: Client, stuck: WorkflowRun, failed: WorkflowRun
) -> None:
    url = reverse("admin:workflows_workflowrun_changelist")

    def listed(query: str) -> list[str]:
        return [row.id for row in admin_client.get(f"{url}?{query}").context["cl"].result_list]

    assert listed("") == [failed.id, stuck.id]
    assert listed("state__exact=needs_attention") == [stuck.id]
    assert listed("service=test-refuses") == [failed.id]
    assert listed("workspace=ws_1") == [stuck.id]
    assert listed("workspace=ws_other") == []
    assert listed(f"q={failed.key}") == [failed.id]
    tomorrow = (clock.now() + timedelta(days=1)).isoformat(sep=" ")
    assert listed(urlencode({"created_at__gte": tomorrow})) == []
    body = {"action": "retry_runs", ACTION_CHECKBOX_NAME: [failed.id, stuck.id]}
    done = [str(message) for message in admin_client.post(url, body, follow=True).context["messages"]]
    made = WorkflowRun.objects.exclude(id__in=[failed.id, stuck.id]).get()
    assert sorted(done) == sorted(
        [
            f"{failed.id} is tried again as {made.id}",
            f"{stuck.id} is needs_attention: only a failed or cancelled run can be retried",
        ]
    )


def test_a_child_that_is_given_up_ends_its_parents_wait() -> None:
    parent = ended(
        start(flows.Parent, {"child": "test-undoes-badly", "child_input": {"k": "c", "name": "c"}})
    )
    child = WorkflowRun.objects.get(parent_id=parent.id)
    assert (parent.state, child.state) == (State.WAITING, State.NEEDS_ATTENTION)
    history.give_up(child.id)
    parent = ended(parent)
    assert (parent.state, parent.error_code) == (State.FAILED, "no_way")


def test_manage_py_speaks_json(capsys: pytest.CaptureFixture[str], failed: WorkflowRun) -> None:
    def manage(*words: str) -> object:
        call_command("workflows", *words, "--json")
        return json.loads(capsys.readouterr().out)

    listed = manage("list", "--state", "failed")
    assert isinstance(listed, list)
    assert [(row["id"], row["errorCode"]) for row in listed] == [(failed.id, "no_way")]
    shown = manage("show", failed.id)
    assert isinstance(shown, dict)
    assert (shown["state"], shown["steps"]) == ("failed", ["one", "refuse"])
    assert [entry["title"] for entry in shown["timeline"] if entry["kind"] == "compensation"] == ["undo one"]
    made = manage("retry", failed.id)
    assert isinstance(made, dict)
    assert manage("cancel", made["id"]) == made
    assert manage("prune", "--days", "1") == {"deleted": 0}
    stats = manage("stats")
    assert isinstance(stats, dict)
    assert stats["runs"] == {"test-refuses": {"failed": 1, "pending": 1}}


def scraped() -> dict[str, float]:
    """Scrape a fresh collector and return the values by name and labels."""
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in metrics.EngineCollector().collect()
        for sample in family.samples
    }


def test_metrics_tell_runs_by_service_and_state_and_how_late_the_oldest_is(stuck: WorkflowRun) -> None:
    start(flows.Three, {"k": "late", "name": "l"})
    with clock.shifted(timedelta(seconds=30)):
        values = scraped()
    assert values["unkey_workflow_runs['needs_attention', 'test-undoes-badly']"] == 1
    assert values["unkey_workflow_runs['pending', 'test-three']"] == 1
    assert 30 <= values["unkey_workflow_lag_seconds[]"] < 60


def test_metrics_tell_what_this_process_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Counters()
    monkeypatch.setattr(metrics, "counters", mine)
    mine.group(
        1,
        [("deploy", "build", "retried", 0.02), ("deploy", "build", "done", 400.0)],
        [("deploy", "succeeded")],
        lapses=2,
        losses=3,
    )
    mine.change(running=3, abandoned=1)
    values = scraped()
    assert (values["unkey_workflow_outside_running[]"], values["unkey_workflow_outside_abandoned[]"]) == (
        3,
        1,
    )
    assert values["unkey_workflow_steps_total['build', 'deploy', 'done']"] == 1
    assert values["unkey_workflow_retries_total['deploy']"] == 1
    assert values["unkey_workflow_step_seconds_bucket['0.025', 'build', 'deploy']"] == 1
    assert values["unkey_workflow_step_seconds_bucket['+Inf', 'build', 'deploy']"] == 2
    assert values["unkey_workflow_step_seconds_sum['build', 'deploy']"] == 400.02
    assert values["unkey_workflow_runs_ended_total['deploy', 'succeeded']"] == 1
    assert (values["unkey_workflow_lease_lapses_total[]"], values["unkey_workflow_lease_losses_total[]"]) == (
        2,
        3,
    )


def test_many_scrapes_ask_the_database_once_in_ten_seconds() -> None:
    now = [0.0]
    collector = metrics.EngineCollector(lambda: now[0])
    asked: list[str] = []

    def count(execute: object, sql: str, *rest: object) -> object:
        asked.append(sql)
        return execute(sql, *rest)  # type: ignore[operator]

    with connection.execute_wrapper(count):
        for second in range(25):
            now[0] = float(second)
            list(collector.collect())
    assert len(asked) == 3 * 2
    assert not [sql for sql in asked if "WHERE" not in sql]


def test_a_database_that_is_away_leaves_its_metrics_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(metrics, "_read", refuse)
    monkeypatch.setattr(connection, "close", lambda: None)
    values = scraped()
    assert "unkey_workflow_lag_seconds[]" not in values
    assert "unkey_workflow_commits_total[]" in values


def test_web_shows_them_and_a_worker_does_at_its_own_port(client: Client) -> None:
    bearer = {"Authorization": f"Bearer {env.secret('AGENT_TOKEN')}"}
    assert b"unkey_workflow_lag_seconds" in client.get("/metrics", headers=bearer).content
    server = metrics.serve("127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers=bearer)) as answer:
            assert b"unkey_workflow_commits_total" in answer.read()
        for path, status in (("/metrics", 401), ("/", 404)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + path)
            assert refused.value.code == status
            refused.value.close()
    finally:
        server.shutdown()
        server.server_close()
