"""Durable workflows of a deployment's life: deploy, roll back, promote, wake.

Deploy, Rollback, Promote and Wake serialise on the project and interleave: no two steps of a
project ever run at once, and none of them holds it while it waits. A step therefore reads the state
that it acts on anew, under the app's lock.
"""

import shlex
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from apps.audit import services as audit
from apps.builds import detection, slots
from apps.cluster.models import Region
from apps.cluster.queries import edges_applied
from apps.cluster.versions import stamp
from apps.deployments import (
    actions,
    capacity,
    compatibility,
    desired_state,
    gates,
    lifecycle,
    logs,
    queries,
    scraping,
)
from apps.deployments.models import Deployment, Topology
from apps.projects.models import App
from apps.routing import services as routing
from apps.routing.models import FrontlineRoute
from apps.workflows.engine import JSON, Finished, Run, Terminal, Wait, Workflow, call, step
from unkey import clock, errors
from unkey.actors import Actor
from unkey.env import env

Status = Deployment.Status
State = Deployment.DesiredState
Sticky = FrontlineRoute.Sticky

EDGES_POLL_SECONDS = 0.1
EDGES_DEADLINE_SECONDS = 60.0
SLOT_DEADLINE_SECONDS = 3600.0
SLOT_POLL_SECONDS = 60.0  # for what no topic tells: a limit was raised, a holder died
LAST_LINES = 20
WHY_CHARACTERS = 3000  # of a failure, before what to do: a run keeps 4000
STOPPED_AGAIN = "The deployment was stopped again before it was awake. Ask once more if it should run."
PROJECT = "project"
# Failures whose message is for the owner; every other one is an accident of ours.
TOLD = lifecycle.ERROR_CODES | {"instances_failed", "timeout", "build_slot_timeout"}


def actor_input(actor: Actor) -> dict[str, str]:
    """Return an actor as a workflow's input carries it."""
    return {name: str(value) for name, value in asdict(actor).items()}


# ----- deploy


@step
def check_superseded(run: Run) -> JSON:
    """Skip a commit that a newer one of its branch has overtaken."""
    deployment = _alive(run)
    newer = (
        _newer(deployment).filter(git_branch=deployment.git_branch).exclude(status__in=queries.ENDED_BADLY)
    )
    if deployment.git_branch and newer.exists():
        raise Terminal(Status.SUPERSEDED, lifecycle.SUPERSEDED)
    return None


@step
def join_build_queue(run: Run) -> JSON:
    """Ask for one of the workspace's build slots, before anything can fail that would have to give it back."""
    return {"place": _ask_for_slot(run, _alive(run))}


def release_build_slot(run: Run) -> JSON:
    """Undo `join_build_queue`: the next in the queue builds."""
    slots.release(run.input["deployment_id"])
    return None


@step
def take_build_slot(run: Run) -> "JSON | Wait":
    """Wait for the deployment's turn, production first; whoever waits also looks for holders that died."""
    for gone in slots.lost(_read(run).workspace_id):
        lifecycle.abandon(gone.deployment_id, gone.run_id, gone.why)
        slots.release(gone.deployment_id)
    deployment = _alive(run)
    if _ask_for_slot(run, deployment) is None:
        lifecycle.next_step(deployment, "queued", "starting")
        return None
    if run.wait_expired:
        raise Terminal(
            "build_slot_timeout",
            "Timed out waiting for a build slot. Too many builds are queued in this workspace. Cancel what is not "
            "needed (`unkey cancel`), or deploy again later.",
        )
    topic = slots.topic(deployment.id)
    return Wait(event=topic, seconds=SLOT_POLL_SECONDS, deadline=SLOT_DEADLINE_SECONDS)


@step
def check_settings(run: Run) -> JSON:
    """Look at the frozen settings again: a deployment may have waited for long."""
    deployment = _alive(run)
    violations = lifecycle.runtime_violations(deployment.settings)
    if violations:
        raise Terminal("invalid_runtime_settings", f"{'; '.join(violations)}. {actions.CHANGE_SETTINGS}")
    lifecycle.next_step(deployment, "starting", "building")
    return None


def _detect(run: Run) -> JSON:
    deployment = _read(run)
    if not deployment.image.startswith("snapshot@"):
        return None
    try:
        plan: JSON = detection.plan_snapshot(deployment.workspace_id, deployment.image, deployment.settings)
    except detection.NothingToRun as nothing:
        raise Terminal("build_failed", f"{nothing} Mend that and deploy again.") from nothing
    except errors.Fault as fault:
        raise Terminal("build_failed", f"{fault.detail} Mend that and deploy again.") from fault
    return plan


@step(outside=_detect, timeout=60)
def build(run: Run, plan: dict[str, Any] | None) -> JSON:
    """Find out what the source says to run; the agent starts it from the snapshot itself."""
    deployment = _alive(run)
    deployment.plan = plan
    deployment.save(update_fields=["plan"])
    lifecycle.next_step(deployment, "building", "deploying", _describe(plan))
    return None


@step
def create_topologies(run: Run) -> JSON:
    """Tell every region's agent to run the deployment, at once."""
    deployment = _alive(run)
    wanted = {row["region"]: row for row in deployment.regions}
    regions = list(Region.objects.filter(name__in=wanted, can_schedule=True).order_by("name"))
    if not regions:
        raise Terminal(
            "no_schedulable_regions",
            "No regions configured. Please configure at least one region before deploying.",
        )
    limits = capacity.lock_limits(deployment.workspace_id)
    replicas = {
        region.name: capacity.replicas(wanted[region.name], limits.replicas_max) for region in regions
    }
    capacity.check_quota(deployment, limits, sum(most for _, most in replicas.values()))
    for region in regions:
        least, most = replicas[region.name]
        topology = Topology(
            deployment=deployment,
            region=region,
            desired_status=State.RUNNING,
            replicas_min=least,
            replicas_max=most,
            # Those that were made before an environment could say have the default.
            **{
                column: deployment.settings[name]
                for column, name in (
                    ("threshold_cpu", "thresholdCpu"),
                    ("threshold_memory", "thresholdMemory"),
                )
                if name in deployment.settings
            },
        )
        stamp(topology)
        topology.save()
    return {"regions": [region.name for region in regions]}


def stop_topologies(run: Run) -> JSON:
    """Undo `create_topologies`: agents stop the instances; the rows stay, as an explicit signal."""
    deployment = _deployment(run)
    if deployment.status != Status.READY:  # what has been given its routes is never taken away again
        lifecycle.set_desired_state(deployment, State.STOPPED)
    return None


def _last_words(run: Run) -> JSON:
    """Fetch what a hopeless deployment wrote last, for the error that its owner will read."""
    found = queries.readiness(run.input["deployment_id"])
    if found.ready or not (found.hopeless or run.wait_expired):
        return None
    deployment = _read(run)
    lines, _ = logs.fetch(queries.agents(deployment), deployment.id, LAST_LINES)
    # A program may write a megabyte into a line: who lists deployments shall not read it each time.
    return [lifecycle.cut(str(line.get("text", ""))) for line in lines if line.get("stream") != "agent"]


@step(outside=_last_words, timeout=30)
def wait_for_instances(run: Run, last_lines: list[str] | None) -> "JSON | Wait":
    """Wait until enough regions are healthy; give up when they cannot become so.

    Agents unpack the source and install what it needs, so the build slot is given back here.
    """
    deployment = _alive(run)
    found = queries.readiness(deployment.id)
    if found.ready:
        slots.release(deployment.id)
        regions = ", ".join(found.healthy)
        lifecycle.next_step(deployment, "deploying", "network", f"healthy in {regions}")
        return {"healthy": list(found.healthy)}
    if not (found.hopeless or run.wait_expired):
        return _until_instances_change(deployment)
    if last_lines is None:  # it got hopeless after the outside part had looked: look again
        return Wait(seconds=0)
    raise Terminal("instances_failed" if found.hopeless else "timeout", _why(found, deployment, last_lines))


@step
def scrape_openapi(run: Run) -> "JSON | Wait":
    """Wait for the program's OpenAPI document, fetched by a run of its own; a slow one is not waited for."""
    deployment = _deployment(run)
    answered = _ask_for_document(run, deployment)
    if isinstance(answered, Wait):
        return answered
    if compatibility.is_unread(deployment.id):
        scraping.look_later(run, deployment.id)
    return answered


def _ask_for_document(run: Run, deployment: Deployment) -> "dict[str, Any] | Wait":
    """Return what came of asking a deployment, and the live one where they are compared."""
    asked = {"deployment_id": deployment.id}
    try:
        fetched = call(run, scraping.ScrapeOpenapi, asked, deadline=scraping.DEADLINE_SECONDS)
    except Terminal as failure:
        why = failure.message
    else:
        if isinstance(fetched, Finished):
            return {"found": fetched.result["digest"] is not None}
        if not run.wait_expired:
            return fetched
        why = "It took too long."
    live: str | None = run.input.get("current_id", deployment.app.current_deployment_id)
    scraping.keep_silence(run, compatibility.unread(deployment, live, itself=True))
    return {"found": False, "why": why}


def _object(run: Run) -> JSON:
    """Compare what the deployment promises with what is live, while no transaction waits for it."""
    deployment = _read(run)
    live: str | None = run.input.get("current_id", deployment.app.current_deployment_id)
    return {
        "live": live,
        "objection": compatibility.objection(deployment, live),
        "known": not compatibility.unread(deployment, live),
    }


@step(outside=_object)
def switch_routes(run: Run, compared: dict[str, Any]) -> "JSON | Wait":
    """Give the deployment its host names, mark it ready and move the live pointer: all or nothing.

    An older deployment that took longer than a newer one, and every production deployment while the
    app is rolled back or the environment objects to it, takes only its commit and deployment names.
    """
    app = lifecycle.lock_app(_read(run).app_id)
    deployment = _alive(run)
    if compared["live"] != app.current_deployment_id:  # another became live after the comparison
        return Wait(seconds=0)
    production = gates.is_production(deployment)
    newer = _newer(deployment).filter(status__in=(Status.READY, Status.STOPPED), objection="")
    overtaken = newer.exists()
    overtaken_on_branch = newer.filter(git_branch=deployment.git_branch).exists()
    objection = compared["objection"]
    held_back = (production and app.is_rolled_back) or bool(objection)
    withheld: set[FrontlineRoute.Sticky] = set()
    if overtaken or held_back:
        withheld |= {Sticky.ENVIRONMENT, Sticky.LIVE}
    if overtaken_on_branch or held_back:
        withheld.add(Sticky.BRANCH)
    domains = [domain for domain in routing.domains_of(deployment) if domain.sticky not in withheld]
    version = routing.assign_routes(deployment, domains)
    previous: str | None = None
    if Sticky.LIVE not in withheld:
        moving = {Sticky.ENVIRONMENT, Sticky.LIVE} if production else {Sticky.ENVIRONMENT}
        _, moved = routing.move_routes(deployment, moving)
        version = max(version, moved)
        if production:
            previous = _make_current(app, deployment, rolled_back=False)
    routing.write_sentinel(deployment)
    hosts = ", ".join(domain.fqdn for domain in domains)
    lifecycle.next_step(deployment, "network", "finalizing", hosts)
    deployment.objection = objection
    deployment.save(update_fields=["objection"])
    lifecycle.set_status(deployment, Status.READY)
    return {
        "version": version,
        "previous": previous,
        "overtaken": overtaken if production else overtaken_on_branch,
        "held_back": held_back,
        "objection": objection,
    }


@step
def wait_for_edges(run: Run) -> "JSON | Wait":
    """Wait until every live edge routes as it should from now on."""
    version = _switched(run)["version"]
    if edges_applied("routes", version):
        return {"confirmed": True}
    if run.wait_expired:
        # What runs is not stopped unconfirmed either: a scheduled stop asks the edges again.
        return {"confirmed": False}
    return _until_edges_apply()


@step
def retire_previous(run: Run) -> dict[str, Any]:
    """Schedule the stop of what nobody is routed to any more."""
    deployment = _deployment(run)
    switched = _switched(run)
    retired: list[str] = []
    if switched["overtaken"]:
        retired = [deployment.id]
    elif not switched["held_back"]:
        retired = _replaced(deployment, switched["previous"])
    for identifier in retired:
        desired_state.retire(identifier, switched["version"])
    lifecycle.end_step(deployment, "finalizing", _outcome(run, switched))
    return {"retired": retired}


def mark_failed(run: Run, code: str, message: str) -> JSON:
    """Mark the deployment failed, superseded or cancelled, with the reason.

    What no user caused is told to them by the step that it happened in; the run keeps the rest.
    """
    deployment = _deployment(run)
    if code in {Status.SUPERSEDED, Status.CANCELLED}:
        lifecycle.give_up(deployment, Status(code), message)
    else:
        told = message if code in TOLD else lifecycle.unexpected(deployment, run.id)
        lifecycle.fail(deployment, code, told)
    return None


class Deploy(Workflow):
    """Bring one deployment from its creation to its host names."""

    service = "deploy"
    key = "project_id"
    key_space = PROJECT
    exclusive = False
    steps = (
        check_superseded,
        join_build_queue,
        take_build_slot,
        check_settings,
        build,
        create_topologies,
        wait_for_instances,
        scrape_openapi,
        switch_routes,
        wait_for_edges,
        retire_previous,
    )
    compensations = {join_build_queue: release_build_slot, create_topologies: stop_topologies}
    on_failure = mark_failed


# ----- rollback and promote


@step
def prepare_target(run: Run) -> JSON:
    """Check the gates again under the app's lock, and wake the target if it is on standby."""
    _, target = _target(run)
    lifecycle.cancel_scheduled(target)
    woken = gates.on_standby(target)
    if woken:
        lifecycle.wake(target)
    return {"woken": woken}


def put_target_back(run: Run) -> JSON:
    """Undo `prepare_target`: what was woken for nothing goes back to standby."""
    if run.results["prepare_target"]["woken"]:
        lifecycle.put_back(_deployment(run), asleep=True)
    return None


@step
def wait_for_target(run: Run) -> "JSON | Wait":
    """Wait until the target is healthy; it is at once unless it was on standby."""
    target = _deployment(run)
    if target.desired_state != State.RUNNING:
        raise Terminal("cancelled", STOPPED_AGAIN)
    found = queries.readiness(target.id)
    if found.ready:
        return None
    if found.hopeless or run.wait_expired:
        raise Terminal("deployment_not_ready", _why(found, target, []))
    return _until_instances_change(target)


@step
def roll_back(run: Run) -> JSON:
    """Swap routes, live pointer and the rolled-back flag in one transaction."""
    app, target = _target(run)
    version = _swap(run, app, target, rolled_back=True)
    _record(run, "deployment.rollback", target)
    return {"version": version}


class Rollback(Workflow):
    """Point an app back at an earlier deployment; what was live keeps running."""

    service = "rollback"
    key = "project_id"
    key_space = PROJECT
    exclusive = False
    urgent = True
    steps = (prepare_target, wait_for_target, roll_back, wait_for_edges)
    compensations = {prepare_target: put_target_back}


@step
def read_documents(run: Run) -> "JSON | Wait":
    """Ask once more for documents that have to be compared and are not known."""
    target = _deployment(run)
    if not compatibility.unread(target, target.app.current_deployment_id) and not run.wait_expired:
        return None
    return _ask_for_document(run, target)


@step(outside=_object)
def make_live(run: Run, compared: dict[str, Any]) -> JSON:
    """Swap routes and live pointer and clear the rolled-back flag in one transaction."""
    app, target = _target(run)
    if compared["objection"]:
        code = "deployment_breaks_clients" if compared["known"] else "precondition_failed"
        raise Terminal(code, compared["objection"])
    if target.objection:
        target.objection = ""
        target.save(update_fields=["objection"])
    confirming = app.current_deployment_id == target.id
    previous = None if confirming else app.current_deployment_id
    if confirming:
        others = Deployment.objects.unscoped("same app").filter(
            environment_id=target.environment_id, status=Status.READY, desired_state=State.RUNNING
        )
        newest = others.exclude(pk=target.id).order_by("-created_at", "-id").first()
        previous = newest.id if newest else None
    version = _swap(run, app, target, rolled_back=False)
    _record(run, "deployment.promote", target)
    return {"version": version, "previous": previous}


@step
def retire_replaced(run: Run) -> dict[str, Any]:
    """Schedule the stop of the deployment that was live before, and of older ones left from a rollback."""
    switched = _switched(run)
    retired = _replaced(_deployment(run), switched["previous"])
    for identifier in retired:
        desired_state.retire(identifier, switched["version"])
    return {"retired": retired}


class Promote(Workflow):
    """Make a deployment the live one and let new deployments go live again."""

    service = "promote"
    key = "project_id"
    key_space = PROJECT
    exclusive = False
    urgent = True
    steps = (
        prepare_target,
        wait_for_target,
        read_documents,
        make_live,
        wait_for_edges,
        retire_replaced,
    )
    compensations = {prepare_target: put_target_back}


# ----- wake


@step
def wait_until_healthy(run: Run) -> "JSON | Wait":
    """Wait until a deployment that was started again is healthy, and let edges send requests to it."""
    deployment = _deployment(run)
    awaited = _until_healthy(run, deployment)
    if awaited is not None:
        return awaited
    return {"version": lifecycle.answer(deployment)}


@step
def wait_until_edges_know(run: Run) -> "JSON | Wait":
    """Wait until every live edge knows that it is awake: who was told that it is ready may ask any of them."""
    if edges_applied("sentinels", run.results["wait_until_healthy"]["version"]):
        return {"confirmed": True}
    return {"confirmed": False} if run.wait_expired else _until_edges_apply()


def _until_healthy(run: Run, deployment: Deployment) -> Wait | None:
    """Return what to wait for until a deployment that wakes is healthy; None: it is."""
    if deployment.status != Status.DEPLOYING:
        raise Terminal(
            deployment.status,
            f"The deployment has been {deployment.status} meanwhile. Ask once more if it should run.",
        )
    found = queries.readiness(deployment.id)
    if found.ready:
        return None
    if found.hopeless or run.wait_expired:
        raise Terminal("deployment_not_ready", _why(found, deployment, []))
    return _until_instances_change(deployment)


@step
def wait_until_awake(run: Run) -> "JSON | Wait":
    """Mark a deployment as ready that was started again; one that has fallen over meanwhile is waited for."""
    deployment = _deployment(run)
    awaited = _until_healthy(run, deployment)
    if awaited is None:
        lifecycle.awake(deployment)
        live = deployment.app.current_deployment_id == deployment.id  # its workspace was resumed
        if gates.is_production(deployment) and not live:  # a request woke it
            standby = timedelta(seconds=env.STANDBY_AFTER_SECONDS)
            desired_state.schedule_standby(deployment, standby, cause=desired_state.WOKEN)
        return None
    return awaited


def let_sleep(run: Run, code: str, message: str) -> JSON:
    """Stop a deployment that did not wake up; it may be started again."""
    lifecycle.put_back(_deployment(run), asleep=run.input.get("asleep", False))
    return None


class Wake(Workflow):
    """Start a stopped deployment again: a preview by its owner, one on standby by a request."""

    service = "wake"
    key = "project_id"
    key_space = PROJECT
    exclusive = False
    steps = (wait_until_healthy, wait_until_edges_know, wait_until_awake)
    on_failure = let_sleep


# ----- what the steps share


def _deployment(run: Run) -> Deployment:
    return lifecycle.lock(run.input["deployment_id"])


def _read(run: Run) -> Deployment:
    rows = Deployment.objects.unscoped("a workflow names it by its id")
    return rows.get(pk=run.input["deployment_id"])


def _alive(run: Run) -> Deployment:
    """Lock the deployment of a Deploy, which ends here when somebody has ended the deployment."""
    deployment = _deployment(run)
    if deployment.status in Deployment.TERMINAL:
        raise Terminal(deployment.status, f"The deployment has been {deployment.status} meanwhile.")
    if deployment.app.deleting_at or deployment.project.deleting_at:
        raise Terminal(Status.CANCELLED, lifecycle.APP_DELETED)
    if deployment.environment.deleting_at:
        raise Terminal(Status.CANCELLED, lifecycle.ENVIRONMENT_DELETED)
    if deployment.workspace.suspended_at:
        raise Terminal(Status.CANCELLED, lifecycle.SUSPENDED)
    return deployment


def _ask_for_slot(run: Run, deployment: Deployment) -> int | None:
    return slots.ask(
        deployment.id,
        workspace_id=deployment.workspace_id,
        run_id=run.id,
        production=gates.is_production(deployment),
    )


def _newer(deployment: Deployment) -> Any:
    return Deployment.objects.unscoped("same environment").filter(
        environment_id=deployment.environment_id, created_at__gt=deployment.created_at
    )


def _describe(plan: dict[str, Any] | None) -> str:
    if not plan:
        return ""
    command = plan["command"]
    line = command[2] if command[:2] == ["/bin/sh", "-c"] else shlex.join(command)
    return f"{plan['kind']}: {line}"


def _until_instances_change(deployment: Deployment) -> Wait:
    return Wait(
        event=lifecycle.instances_topic(deployment.id), deadline=float(env.DEPLOY_HEALTH_DEADLINE_SECONDS)
    )


def _until_edges_apply() -> Wait:
    # Edges write their row themselves and cannot notify; they poll every 100 ms.
    return Wait(seconds=EDGES_POLL_SECONDS, deadline=EDGES_DEADLINE_SECONDS)


def _why(found: queries.Readiness, deployment: Deployment, last_lines: list[str]) -> str:
    if found.hopeless:
        told = [f"{region}: {message}" if message else region for region, message in found.failed.items()]
        sentence = f"Instances failed to start. {'; '.join(told)}"
    else:
        sentence = (
            f"Not enough regions became healthy within {env.DEPLOY_HEALTH_DEADLINE_SECONDS} s: "
            f"{len(found.healthy)} of {found.required} required."
        )
        if found.waiting:
            sentence += f" {found.waiting[-1]}"
    if found.gone:
        sentence += f" {found.gone}"
    missing = [line for line in last_lines if line not in sentence]
    advice = f"Mend that and {'deploy again' if deployment.finished_at is None else 'ask once more'}."
    why = _middle_left_out("\n".join([sentence, *missing]), WHY_CHARACTERS)
    return why if found.gone else f"{why}\n{advice}"


def _middle_left_out(text: str, most: int) -> str:
    left, right = text[: most // 2], text[-most // 2 :]
    return text if len(text) <= most else f"{left}\n...\n{right}"


def _make_current(app: App, deployment: Deployment, *, rolled_back: bool) -> str | None:
    previous = app.current_deployment_id
    app.current_deployment = deployment
    app.is_rolled_back = rolled_back
    app.updated_at = clock.now()
    app.save(update_fields=["current_deployment", "is_rolled_back", "updated_at"])
    return previous if previous != deployment.id else None


def _switched(run: Run) -> dict[str, Any]:
    """Return the result of the step that has moved the routes, whichever workflow this is."""
    for name in ("switch_routes", "roll_back", "make_live"):
        if name in run.results:
            return dict(run.results[name])
    raise RuntimeError(f"{run.service} has not moved any routes yet")


def _replaced(deployment: Deployment, previous: str | None) -> list[str]:
    """Return the deployments that a new one leaves without a purpose.

    Besides the one that was live, older ones still run where a rollback had kept them; those that
    already have a change pending keep their time.
    """
    older = Deployment.objects.unscoped("same environment").filter(
        environment_id=deployment.environment_id,
        status=Status.READY,
        desired_state=State.RUNNING,
        created_at__lt=deployment.created_at,
        scheduled_change=None,
    )
    if not gates.is_production(deployment):
        older = older.filter(git_branch=deployment.git_branch)
    found = set(older.values_list("id", flat=True)) | ({previous} if previous else set())
    return sorted(found)


def _outcome(run: Run, switched: dict[str, Any]) -> str:
    said: list[str] = []
    if switched.get("objection"):
        said.append(f"Not live. {switched['objection']}")
    elif switched["held_back"]:
        said.append("The app is rolled back: promote this deployment to make it live.")
    elif switched["overtaken"]:
        said.append("A newer deployment is live already.")
    if not run.results["wait_for_edges"]["confirmed"]:
        said.append("Not every edge has confirmed the new routes yet.")
    return " ".join(said)


def _target(run: Run) -> tuple[App, Deployment]:
    """Lock the app and the target and check the gates as they stand now."""
    app = lifecycle.lock_app(run.input["app_id"])
    target = _deployment(run)
    woken = run.results.get("prepare_target", {}).get("woken", False)
    try:
        if woken and target.status == Status.DEPLOYING:
            lifecycle.set_status(target, Status.READY)
        gates.check_open(target, app)
        if app.current_deployment_id != run.input["current_id"]:
            raise errors.PreconditionFailed(
                "Another deployment became the current one meanwhile. Look at it and decide again."
            )
        gates.CHECKS[run.service](target, app)
        if woken and target.desired_state != State.RUNNING:
            raise errors.PreconditionFailed(STOPPED_AGAIN)
    except errors.Fault as fault:
        raise Terminal(fault.kind.code.rpartition(":")[2], fault.detail) from fault
    return app, target


def _swap(run: Run, app: App, target: Deployment, *, rolled_back: bool) -> int:
    count, version = routing.move_routes(target, {Sticky.ENVIRONMENT, Sticky.LIVE})
    if not count:
        raise Terminal(
            "precondition_failed",
            "The environment has no routes that could be moved. Deploy to it: that makes them.",
        )
    routing.write_sentinel(target)
    lifecycle.answer(target)
    _make_current(app, target, rolled_back=rolled_back)
    return version


def _record(run: Run, event: str, target: Deployment) -> None:
    audit.record(
        event,
        actor=Actor(**run.input["actor"]),
        workspace_id=target.workspace_id,
        targets=[target],
        meta={"replaced": run.input["current_id"]},
    )
