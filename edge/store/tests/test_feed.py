"""The change feed as an edge sees it: order, tombstones, rows that cannot be read, the heartbeat."""

import threading
from contextlib import contextmanager

from django.db import connection, transaction

from apps.cluster import versions
from apps.cluster.models import Edge, Stream
from apps.deployments.models import Instance
from apps.keys.models import Role
from apps.routing.models import FrontlineRoute, Sentinel
from apps.workspaces.models import RootKey
from edge.store import feed
from edge.store.records import Absence, KeyRecord
from edge.store.state import Lru, State
from edge.verify.verifier import digest_of
from unkey.tenancy import workspace_scope

HOST = "shop.unkey.localhost"


def test_a_host_leads_to_its_deployment_its_policies_and_its_instances(start, site):
    edge = start()
    route = edge.get(lambda store: store.route(HOST))
    assert route.deployment_id == site.deployment.id
    assert route.workspace_id == site.deployment.workspace_id
    assert edge.get(lambda store: store.sentinel(route.deployment_id)).policies == site.sentinel.policies
    (instance,) = edge.get(lambda store: store.instances(route.deployment_id))
    assert (instance.address, instance.region) == ("127.0.0.1:21390", "local")


def test_changes_arrive_and_what_is_gone_is_not_served(start, owner, site):
    edge = start()
    owner.changed(site.instance, status="draining")
    edge.until(lambda store: store.instances(site.deployment.id) == ())
    owner.changed(site.route, deleted_at=site.route.created_at)
    edge.until(lambda store: store.route(HOST) is None)
    owner.changed(site.route, deleted_at=None)
    assert edge.until(lambda store: store.route(HOST)).deployment_id == site.deployment.id


def test_instances_of_this_region_come_first(start, owner, site):
    from apps.cluster.models import Region

    away = Region.objects.create(name="away")
    with transaction.atomic():
        other = Instance(
            deployment=site.deployment, region=away, name="b", address="10.0.0.1:80", status="running"
        )
        versions.stamp(other)
        other.save()
    edge = start()
    assert [one.region for one in edge.get(lambda store: store.instances(site.deployment.id))] == [
        "local",
        "away",
    ]


def in_a_thread(work):
    """Run something on a database connection of its own."""

    def run():
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def read(stream, since, head):
    rejected: list[str] = []
    return [record for page in feed.pages(stream, since, head, 100, rejected.append) for record in page]


def test_what_is_committed_during_a_read_belongs_to_the_next_one(owner, site):
    def deploy():
        owner.changed(site.sentinel, policies=[])
        owner.changed(site.instance, address="127.0.0.1:21393")
        owner.changed(site.route, fqdn="later.unkey.localhost")

    with feed.cut() as heads:
        in_a_thread(deploy)
        assert [one.fqdn for one in read("routes", feed.FULL, heads["routes"])] == [HOST]
        assert [one.address for one in read("instances", feed.FULL, heads["instances"])] == [
            "127.0.0.1:21390"
        ]
    with feed.cut() as later:
        assert [one.fqdn for one in read("routes", heads["routes"], later["routes"])] == [
            "later.unkey.localhost"
        ]
        assert [one.policies for one in read("sentinels", heads["sentinels"], later["sentinels"])] == [[]]
    assert read("routes", feed.FULL, heads["routes"]) == []


def test_a_deployment_and_its_route_become_known_at_the_same_moment(start, owner, site, monkeypatch):
    """A deploy that is committed just after the heads were read waits for the next poll as a whole."""
    edge = start()
    with workspace_scope(owner.workspace.id):
        second = type(site.deployment).objects.get(pk=site.deployment.pk)
        second._state.adding, second.pk = True, "d_second"
        second.save(force_insert=True)

    def deploy():
        with workspace_scope(owner.workspace.id), transaction.atomic():
            instance = Instance(
                deployment=second, region=site.instance.region, name="b", address="a:1", status="running"
            )
            sentinel = Sentinel(
                deployment=second,
                workspace=owner.workspace,
                environment=site.sentinel.environment,
                policies=[],
            )
            site.route.deployment = second
            for row in (instance, site.route, sentinel):
                versions.stamp(row)
                row.save()

    deployed = threading.Event()
    cut = feed.cut

    @contextmanager
    def interrupted():
        with cut() as heads:
            if not deployed.is_set():
                in_a_thread(deploy)
                deployed.set()
            yield heads

    seen = []

    def look(stream, records):
        store = edge.store
        route = store.route(HOST)
        if stream == "routes" and route is not None:
            known = store.sentinel(route.deployment_id) is not None
            seen.append((route.deployment_id, known, len(store.instances(route.deployment_id))))

    edge.store.on_change(look)
    monkeypatch.setattr(feed, "cut", interrupted)
    owner.changed(site.route, sticky="live")
    edge.until(lambda store: store.route(HOST).deployment_id == "d_second")
    assert seen == [(site.deployment.id, True, 1), ("d_second", True, 1)]


def test_rows_of_other_shards_beyond_the_head_are_not_read(owner, django_assert_max_num_queries):
    """Root keys of all shards share a table, whose versions are of many streams."""
    stream = owner.workspace.stream
    head = feed.heads()[stream]
    with workspace_scope(owner.workspace.id):
        RootKey.objects.bulk_create(
            RootKey(workspace=owner.workspace, hash=f"hash-{number}", version=head + 1 + number)
            for number in range(3 * feed.PAGE)
        )
    with django_assert_max_num_queries(8):
        assert read(stream, head, head) == []


def test_listeners_hear_of_a_change_once_it_can_be_seen(start, owner, site):
    edge = start()
    heard = []
    edge.store.on_change(
        lambda stream, records: heard.append((stream, [type(one).__name__ for one in records]))
    )
    owner.changed(site.sentinel, policies=[])
    edge.until(lambda store: store.sentinel(site.deployment.id).policies == [])
    assert ("sentinels", ["Sentinel"]) in heard


def test_a_row_that_cannot_be_read_is_counted_and_does_not_block_those_behind_it(start, owner, site):
    edge = start()
    owner.changed(site.sentinel, policies={"not": "a list"})
    owner.changed(site.route, fqdn="later.unkey.localhost")
    edge.until(lambda store: store.route("later.unkey.localhost"))
    assert edge.store.counters["rows_rejected_routing_sentinel"] == 1
    assert edge.get(lambda store: store.sentinel(site.deployment.id)).policies == [
        {"id": "pol_1", "enabled": True}
    ]


def test_a_first_read_longer_than_a_page_is_complete(start, owner, site):
    with workspace_scope(owner.workspace.id), transaction.atomic():
        version = versions.next_version("routes")
        FrontlineRoute.objects.bulk_create(
            FrontlineRoute(
                workspace=owner.workspace,
                project_id=site.route.project_id,
                app_id=site.route.app_id,
                environment_id=site.route.environment_id,
                deployment=site.deployment,
                fqdn=f"host-{number}.unkey.localhost",
                sticky="deployment",
                version=version,
            )
            for number in range(1100)
        )
    edge = start()
    assert edge.get(
        lambda store: all(store.route(f"host-{number}.unkey.localhost") for number in range(1100))
    )


def test_the_cluster_knows_what_an_edge_has_applied_until_it_stops(start, owner, site):
    edge = start()
    owner.changed(site.route, sticky="live")
    version = Stream.objects.get(name="routes").version
    row = edge.eventually(lambda: Edge.objects.filter(pk="edge-a", applied__routes=version).first())
    assert (row.region_name, row.role) == ("local", "all")
    edge.stop()
    assert not Edge.objects.filter(pk="edge-a").exists()


def test_a_new_key_works_at_once_and_a_deleted_one_stops(start, owner):
    edge = start()
    key, text = owner.key(name="mine")
    assert edge.verify(owner.root_key, text)["name"] == "mine"
    owner.delete(key)
    edge.until(lambda store: store.key(digest_of(text)) is Absence.UNKNOWN)
    assert edge.verify(owner.root_key, text) == {"valid": False, "code": "NOT_FOUND"}


def test_an_unknown_key_is_read_once_and_remembered_as_unknown(start, owner):
    edge = start()
    for _ in range(3):
        assert edge.verify(owner.root_key, "nobody") == {"valid": False, "code": "NOT_FOUND"}
    assert edge.store.counters["fetches"] == 1


def test_a_change_of_a_role_reaches_the_keys_that_have_it(start, owner):
    with workspace_scope(owner.workspace.id):
        role = Role(workspace=owner.workspace, name="editor", shard=owner.api.shard)
        with transaction.atomic():
            versions.stamp(role)
            role.save(force_insert=True)
    _, text = owner.key(roles=["editor"])
    edge = start()
    assert edge.verify(owner.root_key, text, permissions="docs.write")["code"] == "INSUFFICIENT_PERMISSIONS"
    with workspace_scope(owner.workspace.id), transaction.atomic():
        role.permissions.create(workspace=owner.workspace, name="docs.write", slug="docs.write")
        versions.stamp(role)
        role.save()
    edge.caught_up()
    assert edge.verify(owner.root_key, text, permissions="docs.write")["code"] == "VALID"


def test_keys_beyond_the_capacity_are_read_when_they_are_needed(start, owner):
    texts = [owner.key()[1] for _ in range(5)]
    edge = start(key_capacity=2)
    assert (
        edge.get(lambda store: sum(isinstance(store.key(digest_of(text)), KeyRecord) for text in texts)) == 2
    )
    assert [edge.verify(owner.root_key, text)["code"] for text in texts] == ["VALID"] * 5


def test_a_database_that_was_put_back_is_read_anew(start, owner, site):
    edge = start()
    owner.changed(site.route, fqdn="newer.unkey.localhost")
    edge.until(lambda store: store.route("newer.unkey.localhost"))
    with workspace_scope(owner.workspace.id), transaction.atomic():
        FrontlineRoute.objects.update(fqdn=HOST, version=1)
        Stream.objects.filter(name="routes").update(version=1)
    edge.until(lambda store: store.route("newer.unkey.localhost") is None)
    assert edge.get(lambda store: store.route(HOST)).version == 1


def test_an_older_version_never_undoes_a_newer_one():
    from edge.verify.tests.test_steps import KEY, change

    state = State("local", 10)
    newer, older = change(KEY, version=9, enabled=False), change(KEY, version=8)
    assert state.apply([newer]) == [newer]
    assert state.apply([older, newer]) == []
    assert state.key(KEY.hash, 0.0) == newer


def test_the_least_recently_used_entry_leaves():
    entries: Lru[str, int] = Lru(2)
    entries.put("a", 1)
    entries.put("b", 2)
    entries.get("a")
    assert entries.put("c", 3) == 2
    assert (entries.get("a"), entries.get("b"), entries.get("c")) == (1, None, 3)


def test_an_edge_that_missed_removed_ends_reads_the_stream_anew(start, owner, site):
    edge = start()
    edge.caught_up()
    edge.stop()
    # While it is away, its route ends, is removed, and the stream goes on.
    with workspace_scope(owner.workspace.id):
        site.route.delete()
    Stream.objects.filter(name="routes").update(version=9, compacted=8)
    edge = start()
    edge.until(lambda store: store.applied["routes"] == 9)
    assert edge.get(lambda store: store.route(HOST)) is None
    assert len(edge.get(lambda store: store.instances(site.deployment.id))) == 1
