"""Uploads of source snapshots, through the front door."""

import gzip
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from apps.audit.models import AuditLog
from apps.builds.detection import plan_snapshot
from apps.builds.models import Snapshot
from apps.builds.services import object_key
from unkey import errors, objects, snapshots
from unkey.env import env
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> objects.ObjectStore:
    monkeypatch.setitem(env._values, "OBJECT_STORE_URL", f"file://{tmp_path}/objects")
    return objects.open_store(env.OBJECT_STORE_URL)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[bytes, str]:
    """An archive and its digest."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "Procfile").write_text("web: python app.py")
    (tmp_path / "src" / "app.py").write_text("print()")
    archive = io.BytesIO()
    made = snapshots.pack(tmp_path / "src", archive)
    return archive.getvalue(), made.digest


def upload(tenant: Tenant, body: bytes, content_type: str = "application/gzip", **headers: str) -> Any:
    response = tenant.client.post(
        "/v2/snapshots.createSnapshot",
        data=body,
        content_type=content_type,
        headers={"Authorization": f"Bearer {tenant.root_key}", **headers},
    )
    return response.status_code, json.loads(response.content)


def tar(name: str, **fields: Any) -> bytes:
    """An archive of one entry, as a hostile sender would make it."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(entry, field, value)
        archive.addfile(entry)
    return gzip.compress(raw.getvalue())


def test_a_snapshot_is_kept_under_its_digest(
    tenant: Tenant, packed: tuple[bytes, str], store: objects.ObjectStore
) -> None:
    body, digest = packed
    status, answer = upload(tenant, body, **{"X-Unkey-Digest": f"sha256:{digest}"})
    assert status == 201
    image = f"snapshot@sha256:{digest}"
    assert answer["data"] == {"image": image, "size": len(body), "files": 2}
    assert store.read(object_key(tenant.workspace.id, digest)) == body
    settings = {"command": [], "rootDirectory": "."}
    assert plan_snapshot(tenant.workspace.id, image, settings) == {
        "kind": "procfile",
        "command": ["/bin/sh", "-c", "python app.py"],
        "install": None,
    }
    with pytest.raises(errors.SnapshotNotFound):
        plan_snapshot("ws_other", image, settings)
    with unscoped("test"):
        assert AuditLog.objects.filter(event="snapshot.create").count() == 1


def test_the_same_content_is_one_snapshot_per_workspace(
    tenant: Tenant, stranger: Tenant, packed: tuple[bytes, str], store: objects.ObjectStore
) -> None:
    body, digest = packed
    answers = [upload(tenant, body)[1]["data"] for _ in range(2)]
    assert answers[0] == answers[1]
    store.delete(object_key(tenant.workspace.id, digest))
    upload(tenant, body)
    assert store.exists(object_key(tenant.workspace.id, digest))
    assert not store.exists(object_key(stranger.workspace.id, digest))
    upload(stranger, body)
    with unscoped("test"):
        assert Snapshot.objects.count() == 2
        assert AuditLog.objects.filter(event="snapshot.create").count() == 2


def test_what_arrives_damaged_or_hostile_is_refused_and_nothing_kept(
    tenant: Tenant, packed: tuple[bytes, str], store: objects.ObjectStore
) -> None:
    body, digest = packed
    wrong = f"sha256:{'0' * 64}"
    for archive, headers, specific in (
        (body, {"X-Unkey-Digest": wrong}, "invalid_snapshot"),
        (body, {"X-Unkey-Digest": digest}, "invalid_input"),
        (body[:-20], {}, "invalid_snapshot"),
        (b"not gzip", {}, "invalid_snapshot"),
        (gzip.compress(b""), {}, "invalid_snapshot"),
        (tar("../escape"), {}, "invalid_snapshot"),
        (tar("/etc/passwd"), {}, "invalid_snapshot"),
        (tar("dev", type=tarfile.CHRTYPE), {}, "invalid_snapshot"),
        (tar("link", type=tarfile.SYMTYPE, linkname="../x"), {}, "invalid_snapshot"),
    ):
        status, answer = upload(tenant, archive, **headers)
        assert status == 400
        assert answer["error"]["type"].endswith(f"/unkey/application/{specific}")
        assert answer["error"]["detail"]
    assert store.keys("snapshots") == []
    with unscoped("test"):
        assert not Snapshot.objects.exists()


def test_only_archives_of_the_right_size_and_type(
    tenant: Tenant, packed: tuple[bytes, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body, _ = packed
    assert upload(tenant, body, content_type="application/zip")[0] == 400
    monkeypatch.setitem(env._values, "SNAPSHOT_MAX_BYTES", len(body) - 1)
    status, answer = upload(tenant, body)
    assert status == 413
    assert answer["error"]["type"].endswith("/user/bad_request/request_body_too_large")


def test_an_upload_needs_a_permission_to_deploy(tenant: Tenant, packed: tuple[bytes, str]) -> None:
    assert upload(tenant.holding("project.*.read_project"), packed[0])[0] == 403
    for permission in ("environment.*.create_deployment", "project.*.create_deployment"):
        assert upload(tenant.holding(permission), packed[0])[0] == 201


def test_a_store_that_cannot_write_is_an_error_in_the_envelope(
    tenant: Tenant, packed: tuple[bytes, str], tmp_path: Path
) -> None:
    (tmp_path / "objects").write_text("in the way")
    status, answer = upload(tenant, packed[0])
    assert status == 500
    assert answer["error"]["type"].endswith("/unkey/application/service_unavailable")
    with unscoped("test"):
        assert not Snapshot.objects.exists()


@pytest.mark.parametrize("fault", ["no space for a file", "no space in it"])
def test_an_upload_that_finds_no_space_is_no_fault_of_its_sender(
    fault: str,
    tenant: Tenant,
    packed: tuple[bytes, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: objects.ObjectStore,
) -> None:
    if fault == "no space for a file":
        monkeypatch.setattr(tempfile, "tempdir", "/dev/full")
    else:
        (tmp_path / "upload").symlink_to("/dev/full")
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: (tmp_path / "upload").open("wb"))
    status, envelope = upload(tenant, packed[0])
    assert status == 500
    assert envelope["error"]["type"].endswith("/service_unavailable")
    assert not (tmp_path / "upload").is_symlink()
    assert store.keys("snapshots") == []
    with unscoped("the test looks at every workspace"):
        assert Snapshot.objects.count() == 0
