"""Writes of projects, apps, environments and variables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from django.db import IntegrityError, transaction

from apps.audit import services as audit
from apps.cluster.models import Region
from apps.projects.models import App, Environment, EnvironmentRegion, EnvironmentVariable, Project
from apps.projects.workflows import DeleteApp, DeleteEnvironment, DeleteProject
from apps.quota.models import Limits
from apps.vault import services as vault
from apps.workflows.engine import start
from unkey import clock, errors
from unkey.actors import Actor
from unkey.env import env
from unkey.errors import Violation
from unkey.partial import UNSET, Unset

RESERVED_SLUG = "default"


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as its owner gives it."""

    key: str
    value: str
    kind: EnvironmentVariable.Kind
    description: str = ""

    def __repr__(self) -> str:
        return f"Variable({self.key})"


@dataclass(frozen=True, slots=True)
class RegionReplicas:
    """How many instances a region should run."""

    name: str
    least: int
    most: int


def create_project(workspace_id: str, *, name: str, slug: str, actor: Actor) -> Project:
    """Create a project.

    Raises:
        errors.InvalidInput: the slug is reserved.
        errors.ProjectAlreadyExists: another project of the workspace has the slug.
    """
    _refuse_reserved(slug)
    try:
        with transaction.atomic():
            project = Project.objects.create(workspace_id=workspace_id, name=name, slug=slug)
            audit.record("project.create", actor=actor, workspace_id=workspace_id, targets=[project])
    except IntegrityError:
        raise _project_exists(workspace_id, slug) from None
    return project


def update_project(
    project: Project,
    *,
    actor: Actor,
    name: str | Unset = UNSET,
    slug: str | Unset = UNSET,
    delete_protection: bool | Unset = UNSET,
) -> Project:
    """Change those fields of a project that are given.

    Raises:
        errors.InvalidInput: the slug is reserved.
        errors.ProjectAlreadyExists: another project of the workspace has the slug.
        errors.ProjectNotFound: it is being deleted.
    """
    changes = _given(name=name, slug=slug, delete_protection=delete_protection)
    if "slug" in changes:
        _refuse_reserved(changes["slug"])
    try:
        with transaction.atomic():
            row = _locked_project(project)
            before = audit.state(row, *changes)
            _apply(row, changes)
            if changes:
                audit.record(
                    "project.update",
                    actor=actor,
                    workspace_id=row.workspace_id,
                    targets=[row],
                    before=before,
                    after=audit.state(row, *changes),
                    meta=changes,
                )
    except IntegrityError:
        if "slug" not in changes:
            raise
        raise _project_exists(project.workspace_id, changes["slug"]) from None
    return row


def delete_project(project: Project, *, actor: Actor) -> None:
    """Take a project and its apps out of sight, and tear them down in a workflow.

    Raises:
        errors.ProtectedResource: it is protected against deletion.
        errors.ProjectNotFound: it is already being deleted.
    """
    with transaction.atomic():
        row = _locked_project(project)
        if row.delete_protection:
            raise errors.ProtectedResource(
                "The project is protected against deletion. Switch deleteProtection off first."
            )
        now = clock.now()
        row.deleting_at = now
        row.save(update_fields=["deleting_at"])
        App.objects.filter(project=row, deleting_at=None).update(deleting_at=now)
        Environment.objects.filter(app__project=row, deleting_at=None).update(deleting_at=now)
        start(
            DeleteProject,
            {"project_id": row.id, "actor": _said(actor)},
            idempotency_key=f"delete:{row.id}",
            workspace_id=row.workspace_id,
        )
        audit.record("project.delete", actor=actor, workspace_id=row.workspace_id, targets=[row])


def create_app(project: Project, *, name: str, slug: str, actor: Actor) -> App:
    """Create an app with its production and preview environments, each in the default region.

    Raises:
        errors.AppAlreadyExists: another app of the project has the slug.
        errors.ProjectNotFound: the project is being deleted.
    """
    region, _ = Region.objects.get_or_create(name=env.REGION)
    try:
        with transaction.atomic():
            owner = _locked_project(project)
            app = App.objects.create(workspace_id=owner.workspace_id, project=owner, name=name, slug=slug)
            for kind in Environment.Kind:
                environment = Environment.objects.create(
                    workspace_id=owner.workspace_id, app=app, slug=kind.value, kind=kind
                )
                EnvironmentRegion.objects.create(environment=environment, region=region)
            audit.record("app.create", actor=actor, workspace_id=owner.workspace_id, targets=[app])
    except IntegrityError:
        raise _app_exists(project.id, slug) from None
    return app


def update_app(
    app: App,
    *,
    actor: Actor,
    name: str | Unset = UNSET,
    slug: str | Unset = UNSET,
    delete_protection: bool | Unset = UNSET,
) -> App:
    """Change those fields of an app that are given.

    Raises:
        errors.AppAlreadyExists: another app of the project has the slug.
        errors.AppNotFound: it is being deleted.
    """
    changes = _given(name=name, slug=slug, delete_protection=delete_protection)
    try:
        with transaction.atomic():
            row = _locked_app(app)
            before = audit.state(row, *changes)
            _apply(row, changes)
            if changes:
                audit.record(
                    "app.update",
                    actor=actor,
                    workspace_id=row.workspace_id,
                    targets=[row],
                    before=before,
                    after=audit.state(row, *changes),
                    meta=changes,
                )
    except IntegrityError:
        if "slug" not in changes:
            raise
        raise _app_exists(app.project_id, changes["slug"]) from None
    return row


def delete_app(app: App, *, actor: Actor) -> None:
    """Take an app out of sight, and tear it down in a workflow.

    Raises:
        errors.ProtectedResource: it is protected against deletion.
        errors.AppNotFound: it is already being deleted.
    """
    with transaction.atomic():
        row = _locked_app(app)
        if row.delete_protection:
            raise errors.ProtectedResource(
                "The app is protected against deletion. Switch deleteProtection off first."
            )
        row.deleting_at = clock.now()
        row.save(update_fields=["deleting_at"])
        Environment.objects.filter(app=row, deleting_at=None).update(deleting_at=row.deleting_at)
        start(
            DeleteApp,
            {"project_id": row.project_id, "app_id": row.id, "actor": _said(actor)},
            idempotency_key=f"delete:{row.id}",
            workspace_id=row.workspace_id,
        )
        audit.record("app.delete", actor=actor, workspace_id=row.workspace_id, targets=[row])


def delete_environment(environment: Environment, *, actor: Actor) -> None:
    """Take an environment out of sight, and tear it down in a workflow; its app stays.

    Raises:
        errors.ProtectedResource: it is protected against deletion.
        errors.EnvironmentNotFound: it is already being deleted.
    """
    with transaction.atomic():
        # The app first, as everywhere: what deploys holds it.
        app = _locked_app(environment.app, missing=errors.EnvironmentNotFound)
        row = _locked_environment(environment)
        if row.delete_protection:
            raise errors.ProtectedResource(
                "The environment is protected against deletion. Switch deleteProtection off first."
            )
        row.deleting_at = clock.now()
        row.save(update_fields=["deleting_at"])
        start(
            DeleteEnvironment,
            {"project_id": app.project_id, "environment_id": row.id, "actor": _said(actor)},
            idempotency_key=f"delete:{row.id}",
            workspace_id=row.workspace_id,
        )
        audit.record("environment.delete", actor=actor, workspace_id=row.workspace_id, targets=[row])


def set_variables(
    environment: Environment, variables: Sequence[Variable], *, prune: bool, actor: Actor
) -> None:
    """Set variables by key, encrypted in the environment's own key ring, for deployments to come.

    Args:
        environment: whose.
        variables: each replaces the one of the same key, wholly.
        prune: remove all others.
        actor: who does it.

    Raises:
        errors.InvalidInput: a key is given twice, or a value holds a zero octet.
        apps.vault.errors.VaultError: the values cannot be encrypted.
    """
    _check_variables(variables)
    ciphertexts = vault.encrypt_bulk(environment.id, {item.key: item.value for item in variables})
    with transaction.atomic():
        row = _locked_environment(environment)
        existing = {found.key: found for found in EnvironmentVariable.objects.filter(environment=row)}
        now = clock.now()
        fresh: list[EnvironmentVariable] = []
        known: list[EnvironmentVariable] = []
        for item in variables:
            variable = existing.pop(item.key, None)
            if variable is None:
                variable = EnvironmentVariable(
                    workspace_id=row.workspace_id, environment=row, key=item.key, created_at=now
                )
                fresh.append(variable)
            else:
                variable.updated_at = now
                known.append(variable)
            variable.ciphertext = ciphertexts[item.key]
            variable.kind = item.kind
            variable.description = item.description
        EnvironmentVariable.objects.bulk_create(fresh)
        EnvironmentVariable.objects.bulk_update(known, ["ciphertext", "kind", "description", "updated_at"])
        removed = sorted(existing) if prune else []
        EnvironmentVariable.objects.filter(environment=row, key__in=removed).delete()
        _record_variables(row, [item.key for item in variables], removed, actor)


def remove_variables(environment: Environment, keys: Iterable[str], *, actor: Actor) -> None:
    """Remove variables by key; keys that are not there are passed over."""
    with transaction.atomic():
        row = _locked_environment(environment)
        found = EnvironmentVariable.objects.filter(environment=row, key__in=set(keys))
        removed = sorted(found.values_list("key", flat=True))
        found.delete()
        _record_variables(row, [], removed, actor)


def update_settings(
    environment: Environment,
    changes: Mapping[str, Any],
    *,
    actor: Actor,
    vcpus: float | Unset = UNSET,
    regions: Sequence[RegionReplicas] | Unset = UNSET,
) -> None:
    """Change those settings that are given, for deployments to come.

    Args:
        environment: whose.
        changes: column of Environment to its new value.
        actor: who does it.
        vcpus: processors of an instance, in units of one.
        regions: replaces the set of regions.

    Raises:
        errors.InvalidEnvironmentSettings: a value is past a limit of the workspace, or makes no sense;
            every fault is listed.
    """
    changes = dict(changes)
    with transaction.atomic():
        row = _locked_environment(environment)
        limits = Limits.objects.filter(workspace_id=row.workspace_id).first() or Limits()
        faults = _setting_faults(changes, limits)
        if not isinstance(vcpus, Unset):
            if vcpus * 1000 > limits.cpu_millicores_per_instance_max:
                faults.append(_too_much("vCpus", limits.cpu_millicores_per_instance_max / 1000))
            else:
                changes["cpu_millicores"] = round(vcpus * 1000)
        wanted = None if isinstance(regions, Unset) else regions
        known = {region.name: region for region in Region.objects.filter(can_schedule=True)}
        if wanted is not None:
            faults += _region_faults(wanted, known, limits)
        if faults:
            raise errors.InvalidEnvironmentSettings(faults[0].message, violations=tuple(faults))
        if not changes and wanted is None:
            return
        before = audit.state(row, *changes)
        _apply(row, changes)
        if wanted is not None:
            EnvironmentRegion.objects.filter(environment=row).delete()
            EnvironmentRegion.objects.bulk_create(
                EnvironmentRegion(
                    environment=row,
                    region=known[item.name],
                    replicas_min=item.least,
                    replicas_max=item.most,
                )
                for item in wanted
            )
            _apply(row, {})
        audit.record(
            "environment.update",
            actor=actor,
            workspace_id=row.workspace_id,
            targets=[row],
            before=before,
            after=audit.state(row, *changes),
            meta={"settings": sorted([*changes, *([] if wanted is None else ["regions"])])},
        )


def _refuse_reserved(slug: str) -> None:
    if slug.lower() == RESERVED_SLUG:
        raise errors.InvalidInput(
            f"The project slug '{slug}' is reserved.",
            violations=(Violation(f"'{slug}' is reserved", "body.slug", "Choose another slug."),),
        )


def _project_exists(workspace_id: str, slug: str) -> errors.Fault:
    going = Project.objects.filter(workspace_id=workspace_id, slug=slug).exclude(deleting_at=None)
    return errors.ProjectAlreadyExists(
        _taken_down("project", slug)
        if going.exists()
        else f"A project with the slug '{slug}' already exists. Choose another slug."
    )


def _app_exists(project_id: str, slug: str) -> errors.Fault:
    going = App.objects.filter(project_id=project_id, slug=slug).exclude(deleting_at=None)
    return errors.AppAlreadyExists(
        _taken_down("app", slug)
        if going.exists()
        else f"An app with the slug '{slug}' already exists in this project. Choose another slug."
    )


def _taken_down(what: str, slug: str) -> str:
    return (
        f"The {what} with the slug '{slug}' was deleted and is still being taken down. Try again when it is gone, "
        "or choose another slug."
    )


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not UNSET}


def _apply(row: Project | App | Environment, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        setattr(row, name, value)
    row.updated_at = clock.now()
    row.save(update_fields=[*changes, "updated_at"])


def _locked_project(project: Project) -> Project:
    row = Project.objects.select_for_update().filter(pk=project.pk, deleting_at=None).first()
    if row is None:
        raise errors.ProjectNotFound("The requested project does not exist.")
    return row


def _locked_app(app: App, *, missing: type[errors.Fault] = errors.AppNotFound) -> App:
    row = App.objects.select_for_update().filter(pk=app.pk, deleting_at=None).first()
    if row is None:
        what = "app" if missing is errors.AppNotFound else "environment"
        raise missing(f"The requested {what} does not exist.")
    return row


def _said(actor: Actor) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(actor).items()}


def _locked_environment(environment: Environment) -> Environment:
    row = Environment.objects.select_for_update().filter(pk=environment.pk, deleting_at=None).first()
    if row is None:
        raise errors.EnvironmentNotFound("The requested environment does not exist.")
    return row


def _check_variables(variables: Sequence[Variable]) -> None:
    faults: list[Violation] = []
    seen: set[str] = set()
    for place, item in enumerate(variables):
        if item.key in seen:
            faults.append(Violation(f"'{item.key}' is given twice", f"body.variables[{place}].key"))
        seen.add(item.key)
        if "\0" in item.value:
            # No process can be handed such a value.
            faults.append(Violation("value must not contain a zero octet", f"body.variables[{place}].value"))
    if faults:
        raise errors.InvalidInput(faults[0].message, violations=tuple(faults))


def _record_variables(row: Environment, kept: list[str], removed: list[str], actor: Actor) -> None:
    if kept or removed:
        audit.record(
            "environment.update",
            actor=actor,
            workspace_id=row.workspace_id,
            targets=[row],
            meta={"variables": {"set": kept, "removed": removed}},
        )


def _setting_faults(changes: Mapping[str, Any], limits: Limits) -> list[Violation]:
    faults = [
        _too_much(field, most)
        for field, column, most in (
            ("memoryMib", "memory_mib", limits.memory_mib_per_instance_max),
            ("storageMib", "storage_mib", limits.storage_mib_per_instance_max),
        )
        if changes.get(column, 0) > most
    ]
    if "root_directory" in changes and not _stays_inside(changes["root_directory"]):
        faults.append(
            Violation(
                "rootDirectory must be a path inside the source",
                "body.rootDirectory",
                "Give a relative path without '..', such as 'services/api'.",
            )
        )
    faults += [
        Violation("command must not contain a zero octet", f"body.command[{place}]")
        for place, part in enumerate(changes.get("command", []))
        if "\0" in part
    ]
    return faults


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and "\0" not in path


def _too_much(field: str, most: float) -> Violation:
    return Violation(
        f"{field} must be at most {most:g}", f"body.{field}", "Ask for a higher limit of the workspace."
    )


def _region_faults(
    regions: Sequence[RegionReplicas], known: Mapping[str, Region], limits: Limits
) -> list[Violation]:
    faults: list[Violation] = []
    seen: set[str] = set()
    for place, item in enumerate(regions):
        here = f"body.regions[{place}]"
        if item.name in seen:
            faults.append(Violation(f"region '{item.name}' is given twice", f"{here}.name"))
        seen.add(item.name)
        if item.name not in known:
            choices = ", ".join(sorted(known)) or "none"
            faults.append(
                Violation(f"there is no region '{item.name}'", f"{here}.name", f"Regions: {choices}.")
            )
        if not 1 <= item.least <= item.most <= limits.replicas_max:
            faults.append(
                Violation(f"replicas must be 1 <= min <= max <= {limits.replicas_max}", f"{here}.replicas")
            )
        if (item.least, item.most) != (regions[0].least, regions[0].most):
            faults.append(Violation("all regions must have the same replicas", f"{here}.replicas"))
    return faults
