"""What becomes of a root key, edges learn of it by the change feed."""

from datetime import timedelta

from apps.workspaces import services
from apps.workspaces.models import RootKey
from edge.store.tests.conftest import TESTS
from unkey.tenancy import workspace_scope


def test_a_root_key_that_was_made_changed_rerolled_or_deleted_is_known_to_every_edge(start, owner):
    edges = [start("edge-a"), start("edge-b")]
    _, text = owner.key()
    row, root_key = services.create_root_key(owner.workspace, "ci", ["api.*.verify_key"], actor=TESTS)

    def answers(plaintext: str, wanted: tuple[int, str]) -> None:
        def state(edge):
            status, answer = edge.post(plaintext, {"key": text})
            return status, answer["data"]["code"] if status == 200 else answer["error"]["type"].rpartition(
                "/"
            )[2]

        for edge in edges:
            edge.eventually(lambda edge=edge: state(edge) == wanted)

    answers(root_key, (200, "VALID"))
    with workspace_scope(owner.workspace.id):
        services.update_root_key(row.pk, permissions=["api.*.read_api"], actor=TESTS)
        answers(root_key, (200, "NOT_FOUND"))
        services.update_root_key(row.pk, permissions=["api.*.verify_key"], actor=TESTS)
        answers(root_key, (200, "VALID"))
        services.update_root_key(row.pk, enabled=False, actor=TESTS)
        answers(root_key, (403, "key_disabled"))
        services.update_root_key(row.pk, enabled=True, actor=TESTS)
        new, rerolled = services.reroll_root_key(row.pk, timedelta(0), actor=TESTS)
        answers(rerolled, (200, "VALID"))
        answers(root_key, (401, "key_not_found"))
    services.delete_root_key(RootKey.objects.unscoped("test").get(pk=new.pk), actor=TESTS)
    answers(rerolled, (401, "key_not_found"))
