"""`manage.py keys import|export` and `seed`: files of hashes in and out, interrupted and gone on with."""

import base64
import contextlib
import hashlib
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from hypothesis import given
from hypothesis import strategies as st

from apps.audit.models import AuditLog
from apps.keys import bulk
from apps.keys.models import Identity, Key, KeyImport
from apps.workspaces.models import Workspace
from unkey.rpc.testing import Tenant
from unkey.tenancy import unscoped


def hash_of(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def run(*arguments: Any) -> str:
    """Run `manage.py keys` and return what it printed."""
    out = StringIO()
    call_command("keys", *map(str, arguments), stdout=out, stderr=StringIO())
    return out.getvalue()


@pytest.fixture
def api(tenant: Tenant) -> str:
    """An API without keys."""
    return str(tenant("apis.createApi", {"name": "payments"})["apiId"])


def lines(path: Path, *keys: Any) -> Path:
    """Write keys as NDJSON."""
    path.write_text("".join((key if isinstance(key, str) else json.dumps(key)) + "\n" for key in keys))
    return path


def test_imported_keys_verify_with_all_that_the_file_says(tenant: Tenant, api: str, tmp_path: Path) -> None:
    full = {
        "hash": hash_of("first"),
        "start": "old_abc",
        "name": "First",
        "externalId": "ada",
        "meta": {"plan": "pro"},
        "roles": ["reader"],
        "permissions": ["documents.read"],
        "expires": 4_000_000_000_000,
        "credits": {"remaining": 7, "refill": {"interval": "monthly", "amount": 9, "refillDay": 31}},
        "ratelimits": [{"name": "requests", "limit": 3, "duration": 60_000, "autoApply": True}],
    }
    base64_hash = base64.b64encode(hashlib.sha256(b"second").digest()).decode()
    file = lines(tmp_path / "keys.ndjson", full, {"hash": base64_hash, "enabled": False})
    assert run("import", file, "--api", api) == (
        "2 of 2 keys imported, 0 not (duplicates and unreadable entries)\n"
    )
    answer = tenant(
        "keys.verifyKey", {"key": "first", "permissions": "documents.read", "credits": {"cost": 0}}
    )
    assert (answer["code"], answer["credits"], answer["roles"]) == ("VALID", 7, ["reader"])
    assert answer["identity"]["externalId"] == "ada"
    assert tenant("keys.verifyKey", {"key": "second"})["code"] == "DISABLED"
    row = Key.objects.unscoped("test").get(name="First")
    assert (row.start, row.refill_day, row.version > 0) == ("old_abc", 31, True)
    with unscoped("test"):
        (told,) = AuditLog.objects.filter(event="key.create", actor_id="manage.py keys")
        assert {target["id"] for target in told.targets} >= set(Key.objects.values_list("pk", flat=True))


def test_what_cannot_be_imported_is_reported_and_the_rest_is_imported(
    tenant: Tenant, api: str, tmp_path: Path
) -> None:
    run("import", lines(tmp_path / "a.ndjson", {"hash": hash_of("here")}), "--api", api)
    file = lines(
        tmp_path / "b.ndjson",
        {"hash": hash_of("one")},
        {"hash": hash_of("here")},
        {"hash": hash_of("one")},
        "no json",
        "[]",
        {"hash": "too short"},
        {"name": "no hash"},
        {"hash": hash_of("two"), "colour": "red"},
        {"hash": hash_of("three")},
    )
    rejects = tmp_path / "rejects.ndjson"
    assert run("import", file, "--api", api, "--rejects", rejects).startswith("2 of 9 keys imported, 7 not")
    told = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert sorted(line["entry"] for line in told) == [2, 3, 4, 5, 6, 7, 8]
    assert {line["why"] for line in told if line["entry"] == 8} == {"colour is not a field of this object"}
    names = {hash_of(text) for text in ("here", "one", "three")}
    stored = {base64.b64decode(key.hash).hex() for key in Key.objects.unscoped("test").all()}
    assert stored == names


def test_an_interrupted_import_goes_on_where_it_was(
    tenant: Tenant, api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BATCH", 4)
    file = lines(tmp_path / "keys.ndjson", *({"hash": hash_of(str(number))} for number in range(10)))
    real, calls = bulk.import_keys, []

    def dying(*arguments: Any, **more: Any) -> Any:
        calls.append(len(arguments[2]))
        made = real(*arguments, **more)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(bulk, "import_keys", dying)
    with pytest.raises(KeyboardInterrupt):
        run("import", file, "--api", api)
    assert Key.objects.unscoped("test").count() == 4  # the batch that died left nothing
    assert run("import", file, "--api", api).startswith("10 of 10 keys imported, 0 not")
    assert calls == [4, 4, 4, 2]
    assert Key.objects.unscoped("test").count() == 10
    # Once more: it is known to be done.
    assert run("import", file, "--api", api).startswith("10 of 10 keys imported, 0 not")
    assert len(calls) == 4
    with unscoped("test"):
        assert KeyImport.objects.get().finished_at is not None
        versions = Key.objects.values_list("version", flat=True)
        assert len(set(versions)) == 3  # one for each batch


@pytest.mark.parametrize("suffix", [".csv", ".ndjson"])
def test_what_is_exported_can_be_imported(
    tenant: Tenant, stranger: Tenant, api: str, tmp_path: Path, suffix: str
) -> None:
    tenant("permissions.createRole", {"name": "a;b"})
    made = tenant(
        "keys.createKey",
        {
            "apiId": api,
            "prefix": "pay",
            "name": 'a "quoted", name',
            "externalId": "ada",
            "meta": {"text": "line\nbreak"},
            "roles": ["a;b"],
            "permissions": ["read", "write"],
            "expires": 4_000_000_000_000,
            "credits": {"remaining": 5, "refill": {"interval": "daily", "amount": 5}},
            "ratelimits": [{"name": "requests", "limit": 3, "duration": 60_000}],
        },
    )
    tenant("keys.createKey", {"apiId": api, "enabled": False})
    dropped = tenant("keys.createKey", {"apiId": api})["keyId"]
    tenant("keys.deleteKey", {"keyId": dropped})
    file = tmp_path / f"keys{suffix}"
    assert run("export", file, "--api", api) == f"2 keys of payments written to {file}\n"
    assert made["key"] not in file.read_text()
    before = list(bulk.entries(file))
    assert len(before) == 2
    with unscoped("test"):
        for number, key in enumerate(Key.objects.all()):
            Key.objects.filter(pk=key.pk).update(hash=f"moved-{number}")
    there = stranger("apis.createApi", {"name": "payments"})["apiId"]
    assert run("import", file, "--api", there).startswith("2 of 2 keys imported, 0 not")
    again = tmp_path / f"again{suffix}"
    run("export", again, "--api", there)
    first, second = ([bulk.decoded(entry) for entry in bulk.entries(path)] for path in (file, again))
    by_hash = [{key["hash"]: key for key in keys} for keys in (first, second)]
    assert by_hash[0] == by_hash[1]
    assert stranger("keys.verifyKey", {"key": made["key"]})["code"] == "VALID"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "name\nfirst\n", "needs a column hash"),
        ("a.csv", "hash,colour\nx,red\n", "needs a column hash"),
        ("nothing.csv", None, "No such file"),
        ("a.ndjson", b"\xff\xfe", "decode"),
    ],
)
def test_a_file_that_is_none_is_refused(
    tenant: Tenant, api: str, tmp_path: Path, name: str, text: Any, complaint: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CommandError, match=complaint):
        run("import", path, "--api", api)
    with pytest.raises(CommandError, match="there is no API"):
        run("import", path, "--api", "api_nobody")


@given(st.dictionaries(st.sampled_from([*bulk.COLUMNS, ""]), st.text(max_size=20)))
def test_any_row_is_read_or_refused(row: dict[str, str]) -> None:
    with contextlib.suppress(bulk.Unreadable):
        assert isinstance(bulk.decoded(bulk.Entry(1, row)), dict)


@given(st.text(max_size=60))
def test_any_line_is_read_or_refused(line: str) -> None:
    with contextlib.suppress(bulk.Unreadable):
        assert isinstance(bulk.decoded(bulk.Entry(1, line)), dict)


def test_seed_makes_keys_that_verify(db: None, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts", StringIO()
    call_command("seed", "--keys", "60", "--out", texts, stdout=out, stderr=StringIO())
    made = json.loads(out.getvalue())
    tenant = Tenant(Workspace.objects.get(slug="seed"), made["root_key"])
    with unscoped("test"):
        assert Key.objects.count() == 60
        assert 1 < Identity.objects.count() < 60
    codes = {tenant("keys.verifyKey", {"key": text})["code"] for text in texts.read_text().split()[:20]}
    assert "VALID" in codes
    assert codes <= {"VALID", "DISABLED", "EXPIRED", "USAGE_EXCEEDED"}
    with pytest.raises(CommandError, match="at least 1"):
        call_command("seed", "--keys", "0")
