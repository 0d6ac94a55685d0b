"""Without the database: what is known goes on, across a restart, and changes arrive once it is back."""

import stat

import pytest

from apps.certs.services import ensure_certificate
from edge.store import disk, feed
from edge.store.database import Database, DatabaseGone
from edge.store.records import Route
from edge.verify.tests.test_steps import KEY

HOST = "shop.unkey.localhost"


def snapshot_of(tmp_path, edge_id="edge-a"):
    return tmp_path / edge_id / "snapshot"


def test_what_is_known_goes_on_while_the_database_is_away_and_changes_arrive_after(
    start, owner, site, outage
):
    _, text = owner.key()
    edge = start()
    with outage():
        edge.until(lambda store: not store.connected)
        assert edge.get(lambda store: store.route(HOST)).deployment_id == site.deployment.id
        assert edge.verify(owner.root_key, text)["code"] == "VALID"
        status, answer = edge.post(owner.root_key, {"key": "never seen before"})
        assert (status, answer["error"]["type"].rsplit("/", 1)[1]) == (500, "service_unavailable")
    owner.changed(site.instance, address="127.0.0.1:21391")
    edge.until(
        lambda store: [one.address for one in store.instances(site.deployment.id)] == ["127.0.0.1:21391"]
    )


def test_a_restart_without_the_database_serves_from_the_snapshot(start, owner, site, outage, tmp_path):
    certificate = ensure_certificate("*.unkey.localhost")
    _, text = owner.key(name="mine", external_id="user-1", permissions=["docs.read"])
    edge = start()
    edge.stop()
    assert stat.S_IMODE(snapshot_of(tmp_path).stat().st_mode) == 0o600
    assert b"PRIVATE KEY" not in snapshot_of(tmp_path).read_bytes()
    assert text.encode() not in snapshot_of(tmp_path).read_bytes()
    with outage():
        again = start()
        assert again.store.ready
        route = again.get(lambda store: store.route(HOST))
        assert route.deployment_id == site.deployment.id
        assert again.get(lambda store: store.sentinel(route.deployment_id)).policies == site.sentinel.policies
        assert len(again.get(lambda store: store.instances(route.deployment_id))) == 1
        found = again.get(lambda store: store.certificate(HOST))
        assert found.chain == certificate.chain
        assert "PRIVATE KEY" in found.private_key
        answer = again.verify(owner.root_key, text, permissions="docs.read")
        assert (answer["code"], answer["identity"]["externalId"]) == ("VALID", "user-1")
        assert (
            again.verify(owner.root_key, text, permissions="docs.write")["code"] == "INSUFFICIENT_PERMISSIONS"
        )


def test_a_snapshot_is_written_soon_after_a_change_and_survives_a_kill(start, owner, site, outage, tmp_path):
    edge = start()
    owner.changed(site.instance, address="127.0.0.1:21392")
    edge.eventually(
        lambda: snapshot_of(tmp_path).exists() and b"127.0.0.1:21392" in snapshot_of(tmp_path).read_bytes()
    )
    edge.kill()
    with outage():
        again = start()
        (instance,) = again.get(lambda store: store.instances(site.deployment.id))
        assert instance.address == "127.0.0.1:21392"


def test_a_damaged_snapshot_is_set_aside_and_the_database_is_read(start, owner, site, tmp_path):
    edge = start()
    edge.stop()
    path = snapshot_of(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = start()
    assert again.store.counters["snapshots_damaged"] == 1
    assert again.get(lambda store: store.route(HOST)).deployment_id == site.deployment.id
    assert [one.name.startswith("snapshot.damaged-") for one in path.parent.glob("snapshot.*")] == [True]


def test_without_snapshot_and_database_an_edge_waits_unready_and_recovers(start, owner, site, outage):
    with outage():
        edge = start()
        assert not edge.store.ready
        assert edge.get(lambda store: store.route(HOST)) is None
    edge.until(lambda store: store.ready)
    assert edge.get(lambda store: store.route(HOST)).deployment_id == site.deployment.id


@pytest.mark.parametrize("cut", [0, 5, 20, 60, -1])
def test_a_snapshot_that_was_cut_is_damaged(tmp_path, cut):
    path = tmp_path / "snapshot"
    disk.write(path, {"routes": 3}, [[Route("a", "d", "e", "w", "p", "a", 3)], [KEY]])
    assert disk.read(path) == ({"routes": 3}, [Route("a", "d", "e", "w", "p", "a", 3), KEY])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(disk.SnapshotDamaged):
        disk.read(path)


def test_a_database_file_that_was_replaced_is_opened_anew_and_a_missing_one_is_not_made(replaced_file):
    from django.db import connection, connections

    path, write = replaced_file
    sqlite = {
        **connection.settings_dict,
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }

    def configure():
        from django.db import connections
        from django.db.backends.sqlite3.base import DatabaseWrapper

        connections["default"] = DatabaseWrapper(sqlite, "default")

    def read():
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT text FROM note")
            return cursor.fetchone()[0]

    database = Database(configure)

    def ask():
        return database.executor.submit(database.call, read).result()

    with pytest.raises(DatabaseGone, match="No such file"):
        ask()
    assert not path.exists()
    write("first")
    assert ask() == "first"
    write("second")
    assert ask() == "second"
    path.unlink()
    with pytest.raises(DatabaseGone, match="No such file"):
        ask()
    assert not path.exists()
    database.close()


def test_a_fault_in_following_the_database_is_told_and_the_next_attempt_goes_on(
    start, owner, site, monkeypatch, caplog
):
    edge = start()
    heads = feed.heads

    def faulty():
        raise RuntimeError("a row that nobody expected")

    monkeypatch.setattr(feed, "heads", faulty)
    edge.until(lambda store: store.counters["task_failed_follow"] >= 2)
    assert edge.get(lambda store: store.route(HOST)).deployment_id == site.deployment.id
    monkeypatch.setattr(feed, "heads", heads)
    owner.changed(site.instance, address="127.0.0.1:21393")
    edge.until(
        lambda store: [one.address for one in store.instances(site.deployment.id)] == ["127.0.0.1:21393"]
    )
    assert not edge.store.broken.is_set()


def test_a_fault_at_the_first_read_does_not_keep_the_edge_from_starting(start, owner, site, monkeypatch):
    def faulty():
        raise RuntimeError("a row that nobody expected")

    with monkeypatch.context() as patched:
        patched.setattr(feed, "heads", faulty)
        edge = start()
        assert not edge.store.ready
    edge.until(lambda store: store.route(HOST))


@pytest.mark.parametrize("name", ["wallet.report", "_save"])
def test_a_fault_in_any_background_task_is_survived(start, owner, monkeypatch, name):
    edge = start()
    edge.caught_up()
    where, _, attribute = name.rpartition(".")
    target = getattr(edge.store, where) if where else edge.store
    whole = getattr(target, attribute)

    async def faulty():
        raise RuntimeError("not foreseen")

    task = {"report": "report_credits", "_save": "keep_snapshot"}[attribute]
    monkeypatch.setattr(target, attribute, faulty)
    owner.key()
    edge.get(lambda store: store._dirty.set())
    edge.until(lambda store: store.counters[f"task_failed_{task}"])
    done = []

    async def seen():
        done.append(True)
        await whole()

    monkeypatch.setattr(target, attribute, seen)
    edge.get(lambda store: store._dirty.set())
    edge.eventually(lambda: done)


def test_a_tick_that_fails_keeps_no_other_from_being_called(start, monkeypatch):
    monkeypatch.setattr("edge.store.store.TICK_SECONDS", 0.01)
    edge = start()
    called = []

    def faulty():
        raise RuntimeError("not foreseen")

    edge.store.on_tick(faulty)
    edge.store.on_tick(lambda: called.append(True))
    edge.eventually(lambda: len(called) > 1)


def test_a_background_task_that_ends_for_good_is_known(start):
    edge = start()
    edge.get(lambda store: store._tasks[0].cancel())
    edge.until(lambda store: store.broken.is_set())
