"""Keys that were never seen: floods of them are bounded, honest, and move nothing hot out of memory."""

import asyncio
import json
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.store import reading
from edge.store.database import DatabaseGone
from edge.store.held import Table
from edge.store.packing import IdentityPacking, KeyPacking
from edge.store.reading import Reader
from edge.store.records import Absence, Identity, KeyRecord, Ratelimit
from edge.store.state import State
from edge.verify.verifier import digest_of
from unkey.errors import Fault, ServiceUnavailable

BUSY = ServiceUnavailable("").kind.status


class Numbers:
    """Packs numbers as text."""

    def pack(self, record: int) -> tuple[Any, bytes]:
        return record < 0, str(record).encode()

    def unpack(self, name: str, common: Any, rest: bytes) -> int:
        assert common == rest.startswith(b"-")
        return int(rest)


def test_a_flood_of_records_asked_for_once_leaves_those_in_use():
    table = Table(100, Numbers())
    for number in range(50):
        table.put(f"hot {number}", number)
    for number in range(10_000):
        table.put(f"cold {number}", number)
        for hot in range(50):
            held = table.get(f"hot {hot}")
            assert held is not None
            held.used = True
    assert len(table) == 100
    assert [table.peek(f"hot {number}") for number in range(50)] == list(range(50))


def test_a_batch_that_is_imported_moves_no_key_in_use_out_of_memory():
    state = State("local", key_capacity=200)
    texts = dict.fromkeys(("workspace_id", "key_space_id", "api_id", "start", "name"), "")
    lists = dict.fromkeys(("permissions", "role_ids", "ratelimits"), ())
    nothing = dict.fromkeys(("expires_at", "remaining", "identity_id"))
    plain: dict[str, Any] = {**texts, **lists, **nothing, "meta": {}, "enabled": True, "credits_epoch": 0}

    def key(number):
        row = {"id": f"key_{number}", "hash": f"hash {number}", "version": number, **plain}
        return msgspec.convert(row, KeyRecord)

    state.apply(key(number) for number in range(200))
    for number in range(100):
        held = state.keys.get(f"hash {number}")
        assert held is not None
        held.used = 1
    hot = [state.keys.get(f"hash {number}") for number in range(100)]
    for first in range(1000, 21_000, 500):
        state.apply(key(number) for number in range(first, first + 500))
        for each in hot:
            assert each is not None
            each.used = 1
    assert [state.keys.get(f"hash {number}") for number in range(100)] == hot
    assert len(state.keys) == len(state.hash_of) == 200


def test_who_comes_back_soon_after_it_left_stays_longer():
    table = Table(20, Numbers())
    for number in range(40):
        table.put(f"{number}", number)
    gone = [number for number in range(40) if table.peek(f"{number}") is None]
    back = gone[-1]
    table.put(f"{back}", back)
    for number in range(100, 110):
        table.put(f"{number}", number)
    assert table.peek(f"{back}") == back


def test_a_new_record_of_a_name_forgets_what_was_made_of_the_old_one():
    table = Table(2, Numbers())
    table.put("a", 1)
    held = table.get("a")
    assert held is not None
    held.joined = held.plan = object()
    assert table.put("a", 2) == []
    assert (held.record, held.joined, held.plan) == (2, None, None)
    assert table.pop("a") == 2
    assert table.get("a") is None


@given(st.integers(1, 12), st.lists(st.tuples(st.sampled_from("pugd"), st.integers(0, 30)), max_size=300))
def test_a_table_is_a_mapping_within_its_bound(capacity, operations):
    table = Table(capacity, Numbers())
    model: dict[str, int] = {}
    for step, (operation, number) in enumerate(operations):
        name = str(number)
        if operation == "p":
            left = table.put(name, step)
            model[name] = step
            for record in left:
                (gone,) = [each for each, value in model.items() if value == record]
                del model[gone]
        elif operation == "d":
            assert table.pop(name) == model.pop(name, None)
        elif (held := table.get(name)) is not None:
            held.used = operation == "u"
        assert {each: table.peek(each) for each in model} == model
        assert len(table) == len(model) <= capacity
        assert sorted(table.values()) == sorted(model.values())


def test_of_many_records_those_in_use_are_unpacked_and_keep_what_was_made_of_them(monkeypatch):
    monkeypatch.setattr("edge.store.held._UNPACKED_LEAST", 10)
    monkeypatch.setattr("edge.store.held._UNPACKED_SHARE", 8)
    table = Table(80, Numbers())
    for number in range(40):
        table.put(f"{number}", number)
    for number in range(4):
        held = table.get(f"{number}")
        assert held is not None
        held.joined = f"made of {number}"
    for number in range(4, 40):
        for hot in range(4):
            held = table.get(f"{hot}")
            assert held is not None
            assert (held.record, held.joined) == (hot, f"made of {hot}")
            held.used = 1
        cold = table.get(f"{number}")
        assert cold is not None
        assert cold.record == number
        cold.used = 1
    assert table.unpacked == 10
    assert sorted(table.values()) == list(range(40))
    assert table.values()[38:] == [38, 39]


def test_a_record_that_is_replaced_while_it_is_read_is_the_old_one_or_the_new_one():
    table = Table(10, Numbers())
    table.put("a", -1)
    records, held = table.values(), table.get("a")
    assert held is not None
    seen = set()
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(records[0])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20_000):
        table.put("a", number if number % 2 else -number - 1)
    done.set()
    reader.join()
    assert all(number < 0 or number % 2 for number in seen)


key_ids = st.text("abc_123", max_size=5)
limits = st.builds(
    Ratelimit,
    key_ids,
    st.text(max_size=5),
    st.integers(0, 2**63 - 1),
    st.integers(1000, 10**9),
    st.booleans(),
)
metadata = st.dictionaries(
    st.text(max_size=3),
    st.none() | st.integers(-(2**80), 2**80) | st.text(max_size=3) | st.lists(st.booleans()),
)
numbers = st.integers(0, 2**63 - 1)


@given(
    st.builds(
        KeyRecord,
        **dict.fromkeys(("id", "hash", "workspace_id", "key_space_id", "api_id", "start"), key_ids),
        name=st.text(max_size=5),
        meta=metadata,
        expires_at=st.none() | st.integers(-(2**50), 2**50),
        remaining=st.none() | numbers,
        credits_epoch=numbers,
        permissions=st.lists(key_ids, max_size=3).map(tuple),
        role_ids=st.lists(key_ids, max_size=3).map(tuple),
        identity_id=st.none() | key_ids,
        ratelimits=st.lists(limits, max_size=3).map(tuple),
        version=numbers,
    ),
    st.builds(
        Identity,
        **dict.fromkeys(("id", "workspace_id"), key_ids),
        external_id=st.text(max_size=5),
        meta=metadata,
        ratelimits=st.lists(limits, max_size=3).map(tuple),
        version=numbers,
    ),
)
def test_what_is_packed_is_unpacked_the_same(key, identity):
    keys, identities = KeyPacking(), IdentityPacking()
    assert keys.unpack(key.hash, *keys.pack(key)) == key
    assert identities.unpack(identity.id, *identities.pack(identity)) == identity


def test_reads_are_batched_coalesced_and_bounded():
    batches = []
    gate = asyncio.Event()

    async def read(batch):
        batches.append(list(batch))
        await gate.wait()

    async def work():
        from collections import Counter

        counters: Counter[str] = Counter()
        reader = Reader(read, counters, most=500)
        asking = [asyncio.ensure_future(reader.read(("key", str(n % 500)))) for n in range(1000)]
        await asyncio.sleep(0)
        assert len(reader) == 500
        with pytest.raises(Fault) as refusal:
            await reader.read(("key", "one too many"))
        assert refusal.value.kind.code == "err:unkey:application:service_unavailable"
        gate.set()
        await asyncio.gather(*asking)
        await reader.stop()
        return counters

    counters = asyncio.run(work())
    assert [len(batch) for batch in batches] == [reading.BATCH, reading.BATCH, 100]
    assert counters == {"fetches": 500, "fetches_refused": 1}


def test_when_the_database_is_gone_everybody_is_told_so_at_once():
    async def read(batch):
        raise DatabaseGone("away")

    async def work():
        from collections import Counter

        reader = Reader(read, Counter())
        asking = [reader.read(("key", str(n))) for n in range(300)]
        return await asyncio.gather(*asking, return_exceptions=True)

    assert {outcome.kind.code for outcome in asyncio.run(work())} == {
        "err:unkey:application:service_unavailable"
    }


def flood(edge, root_key, texts):
    """Verify many texts at once; return the codes, or the status where it is not 200."""

    async def work():
        headers = {"authorization": f"Bearer {root_key}"}

        async def one(text):
            answer = edge.verifier.handle_verify_key(headers, b'{"key":"%b"}' % text.encode(), "127.0.0.1")
            status, content, _ = answer if isinstance(answer, tuple) else await answer
            return json.loads(content)["data"]["code"] if status == 200 else status

        return await asyncio.gather(*map(one, texts))

    return edge._loop.run(work())


def test_under_a_flood_of_unknown_keys_a_real_one_is_found_or_the_edge_says_that_it_cannot_look(start, owner):
    texts = [owner.key()[1] for _ in range(24)]
    hot, cold = texts[:4], texts[4:]
    edge = start(key_capacity=8)
    edge.verifier.store._state.absent_keys.capacity = 1000
    for _ in range(3):
        assert flood(edge, owner.root_key, hot) == ["VALID"] * 4
    held = [edge.get(lambda store, text=text: store.held_key(digest_of(text))) for text in hot]
    reads = edge.store.counters["fetches"]
    said: dict[str, set[Any]] = {"unknown": set(), "cold": set(), "hot": set()}
    for turn in range(4):
        unknown = [f"sk_nobody_{turn}_{number}" for number in range(3000)]
        codes = flood(edge, owner.root_key, [*unknown, *cold, *hot])
        said["unknown"].update(codes[:3000])
        said["cold"].update(codes[3000:-4])
        said["hot"].update(codes[-4:])
    assert said["hot"] == {"VALID"}
    assert said["cold"] <= {"VALID", BUSY}
    assert said["unknown"] == {"NOT_FOUND", BUSY}
    assert edge.store.counters["fetches_refused"] > 0
    assert edge.store.counters["fetches"] - reads <= 4 * reading.MOST_WAITING
    # The hot keys never left, and what is remembered of the flood is bounded.
    again = [edge.get(lambda store, text=text: store.held_key(digest_of(text))) for text in hot]
    assert [each is other for each, other in zip(held, again, strict=True)] == [True] * 4
    assert len(edge.store._state.keys) <= 8
    assert len(edge.store._state.absent_keys) <= 1000
    # When it is over, everything is found.
    for text in cold:
        assert edge.verify(owner.root_key, text)["code"] == "VALID"


def test_a_key_presented_as_a_root_key_is_still_a_key(start, owner):
    texts = [owner.key()[1] for _ in range(3)]
    edge = start(key_capacity=1)
    for text in texts:
        status, answer = edge.post(text, {"key": "anything"})
        assert (status, answer["error"]["status"]) == (401, 401)
    assert [edge.verify(owner.root_key, text)["code"] for text in texts] == ["VALID"] * 3


def test_a_key_made_after_it_was_asked_for_is_known_at_once(start, owner, monkeypatch):
    text = "sk_1234567890abcdefghij"
    edge = start()
    assert edge.verify(owner.root_key, text)["code"] == "NOT_FOUND"
    assert edge.get(lambda store: store.key(digest_of(text))) is Absence.UNKNOWN
    key, _ = owner.key()
    owner.changed(key, hash=digest_of(text))
    edge.caught_up()
    assert edge.verify(owner.root_key, text)["code"] == "VALID"


def test_a_role_of_many_keys_that_changes_is_one_record_to_every_edge(start, owner):
    from django.db import transaction

    from apps.cluster import versions
    from apps.keys.models import Key, Role
    from unkey.tenancy import workspace_scope

    with workspace_scope(owner.workspace.id), transaction.atomic():
        role = Role(workspace=owner.workspace, name="editor", shard=owner.api.shard)
        versions.stamp(role)
        role.save(force_insert=True)
        version = versions.next_version(role.stream)
        made = Key.objects.bulk_create(
            Key(
                workspace=owner.workspace,
                key_space_id=owner.api.key_space_id,
                shard=owner.api.shard,
                hash=digest_of(f"sk_many_{number}"),
                version=version,
            )
            for number in range(2000)
        )
        Key.roles.through.objects.bulk_create(
            Key.roles.through(key_id=key.id, role_id=role.id) for key in made
        )
    edges = [start(edge_id) for edge_id in ("edge-a", "edge-b")]
    taken: dict[str, list[Any]] = {edge.store.edge_id: [] for edge in edges}
    for edge in edges:
        told = taken[edge.store.edge_id]
        edge.get(lambda store, told=told: store.on_change(lambda stream, records: told.extend(records)))
    sample = [f"sk_many_{number}" for number in range(0, 2000, 100)]
    for edge in edges:
        codes = {edge.verify(owner.root_key, text, permissions="docs.write")["code"] for text in sample}
        assert codes == {"INSUFFICIENT_PERMISSIONS"}
    with workspace_scope(owner.workspace.id), transaction.atomic():
        role.permissions.create(workspace=owner.workspace, name="docs.write", slug="docs.write")
        versions.stamp(role)
        role.save()
    for edge in edges:
        edge.caught_up()
        codes = {edge.verify(owner.root_key, text, permissions="docs.write")["code"] for text in sample}
        assert codes == {"VALID"}
        assert [type(record).__name__ for record in taken[edge.store.edge_id]] == ["Role"]
