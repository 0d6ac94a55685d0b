"""Conformance of object stores: every implementation joins the `store` fixture's parameters."""

import stat
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unkey.env import BadSetting
from unkey.objects import (
    DirectoryStore,
    InvalidKey,
    ObjectNotFound,
    ObjectStore,
    StoreUnavailable,
    open_store,
)

STORES: dict[str, Callable[[Path], ObjectStore]] = {"directory": lambda folder: DirectoryStore(folder / "s")}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return STORES[request.param](tmp_path)


def test_what_was_put_is_read_back_whole(store: ObjectStore) -> None:
    content = bytes(range(256)) * 9000
    store.put("snapshots/ws_1/ab", BytesIO(content))
    assert store.read("snapshots/ws_1/ab") == content
    with store.get("snapshots/ws_1/ab") as file:
        assert file.read(3) == b"\x00\x01\x02"


def test_put_replaces(store: ObjectStore) -> None:
    store.put("a", b"one")
    store.put("a", b"two")
    assert store.read("a") == b"two"


def test_put_new_never_replaces(store: ObjectStore) -> None:
    assert store.put_new("ring/LATEST", b"one") is True
    assert store.put_new("ring/LATEST", b"two") is False
    assert store.read("ring/LATEST") == b"one"


def test_of_many_put_new_exactly_one_wins(store: ObjectStore) -> None:
    gate = threading.Barrier(8)
    won: list[int] = []

    def run(number: int) -> None:
        gate.wait()
        if store.put_new("ring/LATEST", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("ring/LATEST") == str(won[0]).encode()


def test_what_is_not_there(store: ObjectStore) -> None:
    store.put("a/b", b"")
    for key in ("x", "a", "a/b/c"):
        assert store.exists(key) is False
        with pytest.raises(ObjectNotFound):
            store.get(key)
        store.delete(key)
    assert store.read("a/b") == b""


def test_delete_removes(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    assert store.exists("a/b") is True
    store.delete("a/b")
    assert store.exists("a/b") is False


def test_keys_are_listed_by_whole_segments_and_sorted(store: ObjectStore) -> None:
    for key in ("ring/b/2", "ring/b/1", "ring/a/LATEST", "rings/x", "other"):
        store.put(key, b"")
    assert store.keys("ring") == ["ring/a/LATEST", "ring/b/1", "ring/b/2"]
    assert store.keys("ring/b") == ["ring/b/1", "ring/b/2"]
    assert store.keys("nothing") == []


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "a/", ".hidden", "a/.x", "a\0b", "a\nb", "ä", "a" * 201],
)
def test_bad_keys_are_refused_everywhere(store: ObjectStore, key: str) -> None:
    for call in (store.get, store.read, store.exists, store.delete, store.keys):
        with pytest.raises(InvalidKey):
            call(key)
    for put in (store.put, store.put_new):
        with pytest.raises(InvalidKey):
            put(key, b"x")


@given(st.text(alphabet="a./\\\0 ~-\n", max_size=20))
def test_no_key_leaves_the_folder(key: str) -> None:
    root = Path("/srv/objects")
    try:
        path = DirectoryStore(root)._path(key)
    except InvalidKey:
        return
    assert path.is_relative_to(root)
    assert path != root
    assert ".." not in path.parts


def test_files_are_private_and_no_draft_is_left(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "s")

    class Broken(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(28, "No space left on device")

    store.put("a/b", b"x")
    with pytest.raises(StoreUnavailable, match="No space left on device"):
        store.put("a/b", Broken())
    with pytest.raises(StoreUnavailable):
        store.put_new("a/c", Broken())
    assert [path.name for path in (tmp_path / "s" / "a").iterdir()] == ["b"]
    assert store.read("a/b") == b"x"
    assert stat.S_IMODE((tmp_path / "s/a/b").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "s/a").stat().st_mode) == 0o700


def test_a_store_whose_folder_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"Not a directory|File exists"):
        DirectoryStore(tmp_path / "file" / "s").put("a", b"x")


def test_open_store_reads_the_setting(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/with space %41#x").put("a", b"x")
    assert (tmp_path / "with space %41#x" / "a").read_bytes() == b"x"
    for url in ("file://relative", "ftp://x", ""):
        with pytest.raises(BadSetting, match="OBJECT_STORE_URL"):
            open_store(url)
