"""Imported keys at the edge: the first use takes them over, everywhere."""

import hashlib

from apps.keys.imports import ImportedKey, create_migration, import_keys
from apps.keys.models import KeyMigration
from apps.workspaces.services import create_root_key
from edge.store.tests.conftest import TESTS
from unkey.tenancy import workspace_scope

LONG = "51FwqftsmMDHHbJAMEXXHCgG"
TEXT = f"acme_BRTRKFsL_{LONG}"


def test_the_first_use_at_one_edge_takes_a_key_over_for_all(start, owner):
    with workspace_scope(owner.workspace.id):
        migration = create_migration(
            owner.workspace.id, "acme-old", KeyMigration.Algorithm.PREFIXED.value, actor=TESTS
        )
        foreign = ImportedKey(hashlib.sha256(LONG.encode()).hexdigest())
        ((_, key_id),), _ = import_keys(owner.api, migration, [foreign], actor=TESTS)
    _, reader = create_root_key(owner.workspace, "reader", ["api.*.read_key"], actor=TESTS)
    first, second = start("edge-a"), start("edge-b")
    unknown = {"valid": False, "code": "NOT_FOUND"}
    for edge in (first, second):
        assert edge.verify(owner.root_key, TEXT) == unknown
        assert edge.verify(owner.root_key, TEXT, migrationId="another") == unknown
        assert edge.verify(reader, TEXT, migrationId="acme-old") == unknown

    taken = first.verify(owner.root_key, TEXT, migrationId="acme-old")

    assert (taken["code"], taken["keyId"]) == ("VALID", key_id)
    assert first.verify(owner.root_key, TEXT)["code"] == "VALID"
    second.caught_up()
    assert second.verify(owner.root_key, TEXT)["code"] == "VALID"
