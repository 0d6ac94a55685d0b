"""Object store: named blobs, written whole or not at all. A directory today; S3 has the same interface.

    store = objects.open_store(env.OBJECT_STORE_URL)
    store.put("snapshots/ws_1/ab12", file)
    with store.get("snapshots/ws_1/ab12") as file: ...

Keys are `/`-separated segments of letters, digits and `._@=+-`, none of which starts with a dot: so
a key never leaves the store's folder, and the same keys are good names in S3.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from unkey.env import BadSetting

_SEGMENT = re.compile(r"[A-Za-z0-9_@=+-][A-Za-z0-9._@=+-]{0,199}", re.ASCII)
_MAX_KEY = 900
_CHUNK = 1024 * 1024


class ObjectStoreError(Exception):
    """The store cannot do what was asked."""


class InvalidKey(ObjectStoreError):
    """A key has a form that no object may have."""


class ObjectNotFound(ObjectStoreError):
    """There is no object of that key."""


class StoreUnavailable(ObjectStoreError):
    """The store does not answer, is full or may not be written; the cause is in the message."""


class ObjectStore(Protocol):
    """What every store does; `unkey/tests/test_objects.py` is the conformance test.

    All methods raise `InvalidKey` and `StoreUnavailable`.
    """

    def put(self, key: str, content: BinaryIO | bytes) -> None:
        """Write an object, replacing an earlier one; durable when this returns."""

    def put_new(self, key: str, content: BinaryIO | bytes) -> bool:
        """Write an object unless the key is taken; of several callers exactly one gets True."""

    def get(self, key: str) -> BinaryIO:
        """Open an object for reading; the caller closes it.

        Raises:
            ObjectNotFound: there is none.
        """

    def read(self, key: str) -> bytes:
        """Return a small object whole.

        Raises:
            ObjectNotFound: there is none.
        """

    def exists(self, key: str) -> bool:
        """Say whether there is an object of that key."""

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below `prefix` (whole segments, no trailing slash), sorted."""


def open_store(url: str) -> ObjectStore:
    """Return the store that OBJECT_STORE_URL names: `file:///absolute/folder`, taken literally.

    Raises:
        BadSetting: the URL has another scheme or a relative folder.
    """
    if url.startswith("file://"):
        path = url.removeprefix("file://")
        if not path.startswith("/"):
            raise BadSetting("OBJECT_STORE_URL must name an absolute folder: file:///absolute/folder")
        return DirectoryStore(Path(path))
    raise BadSetting("OBJECT_STORE_URL must start with file://")


class DirectoryStore:
    """Objects as files below a folder: mode 0600, written beside and renamed into place, synced.

    Args:
        root: the folder; made when the first object is written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, content: BinaryIO | bytes) -> None:
        path = self._path(key)
        with _plain_errors(key), self._draft(path, content) as draft:
            os.replace(draft, path)
            _sync_folder(path.parent)

    def put_new(self, key: str, content: BinaryIO | bytes) -> bool:
        path = self._path(key)
        with _plain_errors(key), self._draft(path, content) as draft:
            try:
                os.link(draft, path)
            except FileExistsError:
                return False
            _sync_folder(path.parent)
            return True

    def get(self, key: str) -> BinaryIO:
        path = self._path(key)
        with _plain_errors(key):
            try:
                return path.open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise ObjectNotFound(key) from None

    def read(self, key: str) -> bytes:
        with self.get(key) as file, _plain_errors(key):
            return file.read()

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with _plain_errors(key):
            return path.is_file()

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _plain_errors(key):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return
            _sync_folder(path.parent)

    def keys(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        with _plain_errors(prefix):
            return sorted(
                str(Path(parent, name).relative_to(self._root))
                for parent, _, names in os.walk(folder, onerror=_reraise_unless_missing)
                for name in names
                if not name.startswith(".")
            )

    def _path(self, key: str) -> Path:
        if len(key) > _MAX_KEY or not all(_SEGMENT.fullmatch(part) for part in key.split("/")):
            raise InvalidKey(f"{key[:100]!r} cannot name an object")
        return self._root / key

    @contextlib.contextmanager
    def _draft(self, path: Path, content: BinaryIO | bytes) -> Iterator[Path]:
        """Write the content under a name that no key can have; gone when the block ends."""
        _make_folder(path.parent)
        draft = path.parent / f".draft-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                source = BytesIO(content) if isinstance(content, bytes) else content
                shutil.copyfileobj(source, file, _CHUNK)
                file.flush()
                os.fsync(file.fileno())
            yield draft
        finally:
            draft.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, each entry durable in the folder above."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reraise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextlib.contextmanager
def _plain_errors(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"object store: {key}: {error.strerror or error}") from error
