"""One run from its start to its end: steps, results, retries, failures, compensations, limits."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from structlog.testing import capture_logs

from apps.workflows import history
from apps.workflows.definition import BadWorkflow
from apps.workflows.engine import (
    BadPayload,
    Retry,
    Run,
    Secret,
    State,
    Terminal,
    Wait,
    Workflow,
    WorkflowRun,
    cancel,
    notify,
    start,
    step,
)
from apps.workflows.models import WorkflowKey, WorkflowStep, WorkflowTopic
from apps.workflows.payload import MAX_BYTES
from apps.workflows.sweeper import drain
from apps.workflows.tests import flows
from unkey import clock
from unkey.tenancy import current_workspace

pytestmark = pytest.mark.django_db


def journal(run: WorkflowRun) -> list[tuple[str, str, int, object]]:
    """Rows of the journal in the order of their writing: kind, name, attempts, result."""
    return list(run.journal.order_by("id").values_list("kind", "name", "attempts", "result"))


def ended(run: WorkflowRun) -> WorkflowRun:
    """Drive everything and return the run as it is now."""
    drain()
    run.refresh_from_db()
    return run


def test_runs_steps_in_order_and_journals_each_once() -> None:
    run = ended(start(flows.Three, {"k": "a", "name": "r"}))
    assert run.state == State.SUCCEEDED
    assert flows.effects() == ["r.one", "r.two", "r.three"]
    assert journal(run) == [("step", name, 1, name) for name in ("one", "two", "three")]
    assert run.next_at is None
    assert run.finished_at is not None


def test_a_step_sees_the_results_of_the_steps_before_it() -> None:
    seen = []

    @step
    def first(run: Run) -> dict[str, object]:
        return {"n": 1}

    @step
    def second(run: Run) -> None:
        seen.append((run.results, run.attempt, run.token == f"{run.id}/second", run.wait_expired))

    class Sees(Workflow):
        service = "test-sees"
        steps = (first, second)

    ended(start(Sees, {}))
    assert seen == [({"first": {"n": 1}}, 1, True, False)]


def test_parts_run_in_the_scope_of_the_runs_workspace_or_with_the_scope_lifted() -> None:
    seen = []

    def look(run: Run) -> None:
        seen.append(("outside", current_workspace()))

    @step(outside=look)
    def record(run: Run, value: None) -> None:
        seen.append(("recording", current_workspace()))

    class Scoped(Workflow):
        service = "test-scoped"
        steps = (record,)

    ended(start(Scoped, {}, workspace_id="ws_1"))
    ended(start(Scoped, {}))
    assert seen == [("outside", "ws_1"), ("recording", "ws_1"), ("outside", None), ("recording", None)]


def test_w09_a_step_that_raises_is_tried_again_and_leaves_no_effect_of_its_failures() -> None:
    flows.ATTEMPTS.clear()
    run = start(flows.Stumbles, {"k": "a", "name": "r", "succeeds_at": 3})
    drain()
    with clock.shifted(timedelta(seconds=1)):
        drain()
        with clock.shifted(timedelta(seconds=1)):
            run = ended(run)
    assert run.state == State.SUCCEEDED
    assert [(f"{run.id}/stumble", n) for n in (1, 2, 3)] == flows.ATTEMPTS
    assert flows.effects(run.id) == [f"{run.id}.stumble"]
    assert journal(run)[-1] == ("step", "stumble", 3, 3)
    assert run.journal.get(name="stumble").error == "RuntimeError: attempt 2 fails"


def test_w09_exhausted_attempts_compensate_in_reverse_and_keep_the_error() -> None:
    run = start(flows.Stumbles, {"k": "a", "name": "r", "succeeds_at": 99})
    for seconds in range(5):
        with clock.shifted(timedelta(seconds=seconds)):
            run = ended(run)
    assert run.state == State.FAILED
    assert (run.error_code, run.error_message) == ("RuntimeError", "attempt 3 fails")
    assert flows.effects() == ["r.one", "r.two", "undo.two", "undo.one", "failed.RuntimeError"]
    assert [(kind, name) for kind, name, _, _ in journal(run)] == [
        ("step", "one"),
        ("step", "two"),
        ("step", "stumble"),
        ("compensation", "two"),
        ("compensation", "one"),
        ("on_failure", "note_failure"),
    ]


def test_w09_terminal_fails_at_once() -> None:
    run = ended(start(flows.Refuses, {"k": "a", "name": "r"}))
    assert (run.state, run.error_code, run.error_message) == (State.FAILED, "no_way", "It cannot be done.")
    assert flows.effects() == ["r.one", "undo.one", "failed.no_way"]
    assert run.journal.get(name="refuse").attempts == 1


def test_w09_a_compensation_that_keeps_failing_stops_for_attention_and_can_be_given_up(
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = start(flows.UndoesBadly, {"k": "a", "name": "r"})
    behind = start(flows.UndoesBadly, {"k": "a", "name": "r2"})
    for seconds in range(5):
        with clock.shifted(timedelta(seconds=seconds)):
            run = ended(run)
    assert run.state == State.NEEDS_ATTENTION
    assert run.error_code == "no_way"
    assert "compensating one keeps failing: RuntimeError: the undoing fails" in run.error_message
    behind.refresh_from_db()
    assert behind.state == State.PENDING  # an exclusive run keeps its key until an operator decides
    assert history.give_up(run.id).state == State.FAILED
    drain()
    behind.refresh_from_db()
    assert behind.state != State.PENDING


def test_w09_a_failed_outside_step_is_compensated_too(tmp_path: object) -> None:
    def fail(run: Run) -> None:
        raise Terminal("broken", "It is broken.")

    @step(outside=fail)
    def breaks(run: Run, value: None) -> None:
        flows.effect("recorded")

    class Breaks(Workflow):
        service = "test-breaks"
        steps = (breaks,)
        compensations = {breaks: flows.undo("breaks")}

    run = ended(start(Breaks, {}))
    assert run.state == State.FAILED
    assert flows.effects() == ["undo.breaks"]


def test_w09_an_outside_part_that_takes_too_long_fails(transactional_db: None) -> None:
    from apps.workflows.driver import Driver

    run = start(flows.Impatient, {"k": "a", "sleeps": 0.3})
    Driver().drive(run.key)
    with clock.shifted(timedelta(seconds=1)):
        Driver().drive(run.key)
    run.refresh_from_db()
    assert (run.state, run.error_code) == (State.FAILED, "StepTimedOut")
    assert run.journal.get(name="impatient").attempts == 2


def test_w13_a_result_that_is_not_json_fails_at_once_and_says_where() -> None:
    run = ended(start(flows.BadAnswer, {"k": "a"}))
    assert run.state == State.FAILED
    assert (run.error_code, run.error_message) == (
        "bad_payload",
        "result of step answer_anything.set is a set, not plain JSON",
    )


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (Secret("s3cret"), "input of test-three.x is a Secret, which must not be written to the journal"),
        (float("nan"), "input of test-three.x is nan, which JSON cannot hold"),
        ({1: 2}, "input of test-three.x has the name 1, which is not text"),
        (["a", b"b"], "input of test-three.x[1] is a bytes, not plain JSON"),
        ("\ud800", "input of test-three.x is text with a lone surrogate"),
        ({"\ud800": 1}, "input of test-three.x has the name '\\ud800', which is text with a lone surrogate"),
        pytest.param(10**5000, "input of test-three.x is a number of more than 64 bits", id="huge"),
    ],
)
def test_w13_an_input_that_is_not_json_is_refused_and_says_where(value: object, complaint: str) -> None:
    with pytest.raises(BadPayload) as refusal:
        start(flows.Three, {"k": "a", "x": value})
    assert str(refusal.value) == complaint
    assert not WorkflowRun.objects.exists()


def test_w13_an_input_has_a_size_limit_and_needs_its_key() -> None:
    with pytest.raises(BadPayload, match=f"at most {MAX_BYTES} are kept"):
        start(flows.Three, {"k": "a", "x": "y" * MAX_BYTES})
    with pytest.raises(BadPayload, match="needs k, text or a number"):
        start(flows.Three, {"x": "a"})


@pytest.mark.parametrize("text", ["a ", " ", "a\t "])
def test_w01_a_key_that_mariadb_takes_for_another_is_refused(text: str) -> None:
    with pytest.raises(BadPayload, match="must not end in a space"):
        start(flows.Three, {"k": text})
    with pytest.raises(BadPayload, match="must not end in a space"):
        start(flows.Three, {"k": "a"}, idempotency_key=text)
    run = ended(start(flows.Three, {"k": " a\t", "name": "r"}, idempotency_key="A"))
    assert start(flows.Three, {"k": "b"}, idempotency_key="a").id != run.id
    assert run.state == State.SUCCEEDED


def test_w13_secrets_show_nowhere() -> None:
    assert repr(Secret("s3cret")) == str(Secret("s3cret")) == "Secret(…)"
    assert Secret("s3cret").reveal() == "s3cret"


def test_w07_waits_hold_until_their_time() -> None:
    run = ended(start(flows.Naps, {"k": "a", "name": "r", "seconds": 60}))
    assert (run.state, flows.effects()) == (State.WAITING, [])
    with clock.shifted(timedelta(seconds=59)):
        assert ended(run).state == State.WAITING
    with clock.shifted(timedelta(seconds=61)):
        assert ended(run).state == State.SUCCEEDED
    assert [result for _, _, _, result in journal(run)] == ["woke", "after"]


def test_w07_the_deadline_of_an_event_counts_from_the_first_wait() -> None:
    run = ended(start(flows.Listens, {"k": "a", "name": "r", "topic": "t", "deadline": 60}))
    with clock.shifted(timedelta(seconds=50)):
        notify("t")  # wakes it, but its condition does not hold
        assert ended(run).state == State.WAITING
    with clock.shifted(timedelta(seconds=61)):
        assert ended(run).state == State.SUCCEEDED
    assert journal(run)[0] == ("step", "wait_for_topic", 1, "expired")


def test_w11_cancel_is_at_once_in_a_wait_and_compensates() -> None:
    first = flows.note("one")

    class Cancelled(Workflow):
        service = "test-cancelled"
        steps = (first, flows.wait_for_topic)
        compensations = {first: flows.undo("one")}
        on_failure = flows.note_failure

    run = ended(start(Cancelled, {"name": "r", "topic": "t"}))
    assert run.state == State.WAITING
    assert cancel(run.id)
    run = ended(run)
    assert (run.state, run.error_code) == (State.CANCELLED, "cancelled")
    assert flows.effects() == ["r.one", "undo.one", "failed.cancelled"]
    assert not cancel(run.id)


def test_w11_cancel_before_the_first_step_runs_no_step() -> None:
    run = start(flows.Stumbles, {"k": "a", "name": "r", "succeeds_at": 1})
    cancel(run.id)
    assert ended(run).state == State.CANCELLED
    assert flows.effects() == ["failed.cancelled"]


def test_w12_code_that_lacks_the_next_step_stops_the_run_and_an_operator_resumes_it() -> None:
    run = start(flows.Three, {"k": "a", "name": "r"})
    WorkflowRun.objects.filter(id=run.id).update(step_names=["one", "gone", "three"])
    run = ended(run)
    assert run.state == State.NEEDS_ATTENTION
    assert run.error_message == "the running code of test-three has no step gone, which comes next"
    WorkflowRun.objects.filter(id=run.id).update(step_names=["one", "three"])  # as a fixed deploy would
    history.resume(run.id)
    run = ended(run)
    assert (run.state, run.error_code) == (State.SUCCEEDED, "")
    assert flows.effects() == ["r.one", "r.three"]


def test_w12_a_run_whose_workflow_is_gone_stops_for_attention() -> None:
    run = start(flows.Three, {"k": "a"})
    WorkflowRun.objects.filter(id=run.id).update(service="gone")
    assert ended(run).error_message == "the running code has no workflow named gone"


def test_w12_steps_that_were_added_since_do_not_disturb_a_run_that_started_before() -> None:
    run = start(flows.Three, {"k": "a", "name": "r"})
    WorkflowRun.objects.filter(id=run.id).update(step_names=["one", "two"])
    assert ended(run).state == State.SUCCEEDED
    assert flows.effects() == ["r.one", "r.two"]


def test_a_parent_gets_its_childs_result_and_the_sent_run_runs_by_itself() -> None:
    run = ended(start(flows.Parent, {"child": "test-three", "child_input": {"k": "c", "name": "child"}}))
    assert run.state == State.SUCCEEDED
    assert journal(run)[-1][3] == {"child": "three"}
    assert sorted(flows.effects()) == sorted(
        [f"{who}.{n}" for who in ("child", "sent") for n in ("one", "two", "three")]
    )


def test_a_childs_failure_fails_its_parent_with_the_same_error() -> None:
    run = ended(start(flows.Parent, {"child": "test-refuses", "child_input": {"k": "c", "name": "child"}}))
    assert (run.state, run.error_code) == (State.FAILED, "no_way")


def test_w11_cancelling_a_parent_cancels_the_child_that_it_waits_for() -> None:
    child_input = {"k": "c", "name": "child", "topic": "never"}
    run = ended(start(flows.Parent, {"child": "test-listens", "child_input": child_input}))
    child = WorkflowRun.objects.get(parent_id=run.id)
    assert (run.state, child.state) == (State.WAITING, State.WAITING)
    cancel(run.id)
    run = ended(run)
    child.refresh_from_db()
    assert (run.state, child.state) == (State.CANCELLED, State.CANCELLED)


def test_w09_retry_policy_grows_to_its_cap() -> None:
    policy = Retry(initial=1, factor=2, cap=5, jitter=0)
    assert [policy.delay(n) for n in (1, 2, 3, 4, 400)] == [1, 2, 4, 5, 5]


def test_a_wait_needs_something_to_wait_for() -> None:
    for wrong in ({}, {"deadline": 1}, {"seconds": 1, "until": clock.now()}, {"event": "x" * 256}):
        with pytest.raises(ValueError, match="Wait"):
            Wait(**wrong)


def test_badly_written_workflows_are_refused_when_they_are_defined() -> None:
    with pytest.raises(BadWorkflow, match="at least one step"):
        type("None_", (Workflow,), {"service": "test-none"})
    with pytest.raises(BadWorkflow, match="each name once"):
        type("Twice", (Workflow,), {"service": "test-twice", "steps": (flows.one, flows.one)})
    compensations = {flows.two: flows.one}
    with pytest.raises(BadWorkflow, match="not one of its steps"):
        type("Odd", (Workflow,), {"service": "t-odd", "steps": (flows.one,), "compensations": compensations})
    with pytest.raises(BadWorkflow, match="two workflows are named test-three"):
        type("Other", (Workflow,), {"service": "test-three", "steps": (flows.one,)})


def test_w14_prune_deletes_what_ended_long_ago_and_keeps_the_rest() -> None:
    old = ended(start(flows.Three, {"k": "a", "name": "r"}))
    waiting = ended(start(flows.Listens, {"k": "b", "topic": "t"}))
    with clock.shifted(timedelta(days=31)):
        fresh = ended(start(flows.Three, {"k": "c", "name": "r"}))
        assert history.prune(timedelta(days=30)) == 1
    assert not WorkflowRun.objects.filter(id=old.id).exists()
    assert not WorkflowStep.objects.filter(run_id=old.id).exists()
    assert set(WorkflowRun.objects.values_list("id", flat=True)) == {waiting.id, fresh.id}
    assert list(WorkflowKey.objects.values_list("key", flat=True)) == ["test-listens:b"]
    assert list(WorkflowTopic.objects.values_list("name", flat=True)) == ["t"]


def test_operators_see_and_move_runs_by_manage_py(capsys: pytest.CaptureFixture[str]) -> None:
    failed = ended(start(flows.Refuses, {"k": "a", "name": "r"}))
    waiting = ended(start(flows.Listens, {"k": "b", "topic": "t"}))

    def manage(*words: str) -> str:
        call_command("workflows", *words)
        return capsys.readouterr().out

    assert f"{failed.id}" in manage("list", "--state", "failed")
    assert waiting.id not in manage("list", "--state", "failed")
    shown = manage("show", failed.id)
    assert "error no_way: It cannot be done." in shown
    assert "compensation" in shown
    assert "started run_" in manage("retry", failed.id)
    assert "will stop" in manage("cancel", waiting.id)
    assert ended(waiting).state == State.CANCELLED
    assert "test-listens              cancelled 1" in manage("stats")
    with pytest.raises(Exception, match="only a failed or cancelled run can be retried"):
        manage("retry", ended(start(flows.Three, {"k": "z"})).id)
    assert manage("prune", "--days", "1") == "deleted 0 runs\n"


@pytest.mark.parametrize("days", ["-1", "0", "-0.0", "nan", "inf", "-inf", "1e12", "99999999999", "36500.1"])
def test_w14_prune_refuses_an_age_that_makes_no_sense(days: str) -> None:
    run = ended(start(flows.Three, {"k": "a"}))
    with pytest.raises(CommandError, match="--days has to be a number greater than 0 and at most 36500"):
        call_command("workflows", "prune", f"--days={days}")
    assert WorkflowRun.objects.filter(id=run.id).exists()
    call_command("workflows", "prune", "--days", "36500")


def test_w14_prune_works_in_small_batches_of_runs_keys_and_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "BATCH", 2)
    for n in range(5):
        start(flows.Three, {"k": str(n), "name": "r"})
        notify(f"topic {n}")
    drain()
    deleted: list[int] = []

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        came = execute(sql, params, many, context)
        if sql.startswith("DELETE"):
            deleted.append(context["cursor"].rowcount)
        return came

    with clock.shifted(timedelta(days=31)), connection.execute_wrapper(count):
        assert history.prune(timedelta(days=30)) == 5
    assert max(deleted) <= 2 * len(flows.Three.steps)
    assert not (WorkflowRun.objects.exists())
    assert not (WorkflowStep.objects.exists())
    assert not (WorkflowKey.objects.exists())
    assert not (WorkflowTopic.objects.exists())


def test_w14_prune_keeps_a_child_as_long_as_its_parent_and_a_parent_as_long_as_its_child_goes_on() -> None:
    called = ended(start(flows.Parent, {"child": "test-three", "child_input": {"k": "c", "name": "child"}}))
    child = WorkflowRun.objects.get(parent_id=called.id)
    WorkflowRun.objects.filter(id=child.id).update(finished_at=clock.now() - timedelta(days=40))
    history.prune(timedelta(days=30))
    assert WorkflowRun.objects.filter(id=child.id).exists()  # its parent's timeline leads to it
    parent = start(flows.Parent, {"child": "test-listens", "child_input": {"k": "l", "topic": "t"}})
    drain()
    WorkflowRun.objects.filter(id=parent.id).update(state=State.FAILED, finished_at=clock.now())
    with clock.shifted(timedelta(days=31)):
        history.prune(timedelta(days=30))
        assert WorkflowRun.objects.filter(id=parent.id).exists()
        assert not WorkflowRun.objects.filter(id__in=[called.id, child.id]).exists()


def test_w14_prune_keeps_what_another_app_points_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_referred", [])
    kept, gone = (ended(start(flows.Three, {"k": k, "name": k})) for k in "ab")
    history.refers(lambda run_ids: [run_id for run_id in run_ids if run_id == kept.id])
    with clock.shifted(timedelta(days=31)):
        assert history.prune(timedelta(days=30)) == 1
    assert list(WorkflowRun.objects.values_list("id", flat=True)) == [kept.id]
    assert kept.journal.count() == 3
    assert not WorkflowRun.objects.filter(id=gone.id).exists()


def test_w14_prune_asks_no_more_at_a_time_however_many_runs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_referred", [])
    monkeypatch.setattr(history, "BATCH", 2)
    runs = [start(flows.Stumbles, {"k": str(n), "name": str(n), "succeeds_at": 1}) for n in range(12)]
    drain()
    WorkflowRun.objects.update(finished_at=clock.now())  # all at one moment
    kept = {run.id for run in runs[:9]}
    history.refers(kept.intersection)
    asked: list[int] = []

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        asked.append(len(params or ()))
        return execute(sql, params, many, context)

    with clock.shifted(timedelta(days=31)), connection.execute_wrapper(count):
        assert history.prune(timedelta(days=30)) == 3
    assert set(WorkflowRun.objects.values_list("id", flat=True)) == kept
    assert max(asked) < len(kept) + 4


def test_w11_a_cancel_during_a_step_takes_effect_when_that_has_been_recorded() -> None:
    @step
    def cancelled_meanwhile(run: Run) -> None:
        flows.effect("recorded")
        cancel(run.id)

    class CancelledMeanwhile(Workflow):
        service = "test-cancelled-meanwhile"
        steps = (cancelled_meanwhile, flows.one)
        compensations = {cancelled_meanwhile: flows.undo("it")}

    run = ended(start(CancelledMeanwhile, {"name": "r"}))
    assert run.state == State.CANCELLED
    assert flows.effects() == ["recorded", "undo.it"]


def test_w12_code_that_lacks_a_compensation_stops_the_run_and_an_operator_resumes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = start(flows.Refuses, {"k": "a", "name": "r"})
    monkeypatch.setattr(flows.Refuses, "undo_by_name", {"one": flows.Refuses.undo_by_name["one"]})
    WorkflowRun.objects.filter(id=run.id).update(
        undo=["one", "two"], undo_index=1, state=State.COMPENSATING, error_code="no_way"
    )
    run = ended(run)
    assert run.state == State.NEEDS_ATTENTION
    assert run.error_message == "the running code of test-refuses has no compensation for step two"
    with monkeypatch.context() as deployed:
        deployed.setitem(flows.Refuses.undo_by_name, "two", flows.undo("two"))
        history.resume(run.id)
        run = ended(run)
    assert (run.state, run.error_code) == (State.FAILED, "no_way")
    assert flows.effects() == ["undo.two", "failed.no_way"]


def test_w09_a_compensation_that_keeps_failing_is_logged_as_an_error() -> None:
    run = start(flows.UndoesBadly, {"k": "a", "name": "r"})
    with capture_logs() as logs:
        for seconds in range(5):
            with clock.shifted(timedelta(seconds=seconds)):
                drain()
    (loud,) = [line for line in logs if line["log_level"] == "error"]
    assert (loud["event"], loud["run_id"], loud["step"]) == ("workflow needs attention", run.id, "one")


@pytest.mark.parametrize("result", [Secret("s3cret"), "x" * (MAX_BYTES + 1)])
def test_w13_a_result_that_is_a_secret_or_too_large_is_not_recorded(result: object) -> None:
    @step
    def answer(run: Run) -> object:
        flows.effect("before")
        return result

    class Answers(Workflow):
        service = f"test-answers-{type(result).__name__.lower()}"
        steps = (answer,)

    run = ended(start(Answers, {}))
    assert (run.state, run.error_code, flows.effects()) == (State.FAILED, "bad_payload", [])
    assert "s3cret" not in "".join(str(list(model.objects.values())) for model in (WorkflowRun, WorkflowStep))
