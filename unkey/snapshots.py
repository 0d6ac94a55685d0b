"""Source snapshots: a folder as one archive, packed the same way every time and read without trust.

    packed = pack(Path("examples/hello"), file)     # Packed(digest, size, files)
    listing = inspect(file)                         # Listing(members, …), or InvalidSnapshot
    unpack(file, Path("/srv/instance"))             # nothing is ever written outside of it

A snapshot is a gzip-compressed tar of regular files, folders and symbolic links that stay inside.
Its name is the SHA-256 of the packed octets: `snapshot@sha256:<64 hexadecimal digits>`.

Archives come from outside, so they are read by the strict reader below and not by `tarfile`,
which takes a damaged header for the end of the archive and holds extended headers of any size in
memory. Formats: POSIX ustar and pax (IEEE Std 1003.1, "pax interchange format"), GNU long names.

Pure: the CLI packs with it, web inspects, the agent unpacks.
"""

import gzip
import hashlib
import os
import re
import secrets
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import pathspec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from unkey.env import env
from unkey.errors import InvalidSnapshot

MAX_FILES = 20_000
MAX_NAME_OCTETS = 1024
MAX_COMPONENT_OCTETS = 255
MAX_LINK_HOPS = 40
UNPACKED_RATIO = 10
REFERENCE = re.compile(r"snapshot@sha256:([0-9a-f]{64})")

_CHUNK = 64 * 1024
_BLOCK = 512
_MAX_HEADER_RECORDS = 64 * 1024
_ALWAYS_OUT = ".git"


@dataclass(frozen=True, slots=True)
class Packed:
    """What `pack` made.

    Args:
        digest: SHA-256 of the packed octets, 64 hexadecimal digits.
        size: packed octets.
        files: regular files and symbolic links in it.
    """

    digest: str
    size: int
    files: int

    @property
    def reference(self) -> str:
        """The image reference of this snapshot."""
        return reference(self.digest)


class Kind(Enum):
    """What a member of a snapshot is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a snapshot.

    Args:
        name: path from the folder, `/` between parts, never absolute, no `.` or `..`.
        kind: file, folder or symbolic link.
        size: octets of a file, 0 for the rest.
        executable: whether its owner may run it.
        target: where a link points, as written; empty for the rest.
    """

    name: str
    kind: Kind
    size: int = 0
    executable: bool = False
    target: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in a snapshot: its members in the archive's order, and the octets it unpacks to."""

    members: tuple[Member, ...]
    unpacked: int

    @property
    def files(self) -> int:
        """How many regular files and links there are."""
        return sum(member.kind is not Kind.FOLDER for member in self.members)

    def __contains__(self, name: object) -> bool:
        return any(member.name == name for member in self.members)


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a snapshot may be.

    Args:
        packed: octets of the archive.
        unpacked: octets of all its files together.
        files: members, folders included.
    """

    packed: int
    unpacked: int
    files: int = MAX_FILES

    @classmethod
    def from_env(cls) -> "Limits":
        """Return the limits that SNAPSHOT_MAX_BYTES gives."""
        return cls(packed=env.SNAPSHOT_MAX_BYTES, unpacked=env.SNAPSHOT_MAX_BYTES * UNPACKED_RATIO)


def reference(digest: str) -> str:
    """Return the image reference of a digest of 64 hexadecimal digits."""
    return f"snapshot@sha256:{digest}"


def parse_reference(text: str) -> str:
    """Return the digest, 64 hexadecimal digits, that an image reference names.

    Raises:
        InvalidSnapshot: the text is no `snapshot@sha256:<digest>`.
    """
    match = REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidSnapshot(
            f"{_shown(text)} is not a snapshot reference: use snapshot@sha256: and 64 hexadecimal digits."
        )
    return match[1]


def pack(folder: Path, out: BinaryIO, limits: Limits | None = None) -> Packed:
    """Write a folder as a snapshot; equal content gives equal octets, whenever and wherever.

    Names are sorted; times, owners and every mode bit but "executable" are left out. `.gitignore`
    files (nested ones too) and a `.dockerignore` at the top decide what stays out; `.git` always does.

    Args:
        folder: what to pack.
        out: written from its current position.
        limits: how large it may get; by default what the settings say.

    Raises:
        InvalidSnapshot: the folder is missing, empty, too large, or holds what a snapshot may not.
        OSError: `out` cannot be written.
    """
    limits = limits or Limits.from_env()
    if not folder.is_dir():
        raise InvalidSnapshot(f"{folder} is not a folder: name the folder that holds the program.")
    rules = _Rules(limits)
    sink = _Sink(out, limits.packed)
    files = 0
    with (
        gzip.GzipFile(filename="", fileobj=sink, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive,
    ):
        for member, path in _walk(folder):
            rules.admit(member)
            entry = tarfile.TarInfo(member.name)
            entry.mode = 0o755 if member.executable or member.kind is Kind.FOLDER else 0o644
            files += member.kind is not Kind.FOLDER
            if member.kind is Kind.FILE:
                entry.size = member.size
                _add_file(archive, entry, path)
            else:
                entry.type = tarfile.DIRTYPE if member.kind is Kind.FOLDER else tarfile.SYMTYPE
                entry.linkname = member.target
                archive.addfile(entry)
        if not files:
            raise InvalidSnapshot(f"{folder} has no files to pack: it is empty, or all of it is ignored.")
        rules.finish()
    return Packed(digest=sink.digest.hexdigest(), size=sink.size, files=files)


def inspect(file: BinaryIO, limits: Limits | None = None) -> Listing:
    """Read a whole archive without unpacking it, and return what is in it.

    Args:
        file: read from its current position to its end.
        limits: how large it may be; by default what the settings say.

    Raises:
        InvalidSnapshot: it is broken, too large, or could reach outside of its folder.
    """
    limits = limits or Limits.from_env()
    rules = _Rules(limits)
    members: list[Member] = []
    for member, _ in _read(file, limits):
        rules.admit(member)
        members.append(member)
    rules.finish()
    return Listing(members=tuple(members), unpacked=rules.unpacked)


def read_members(
    file: BinaryIO, names: Iterable[str], limit: int = 1024 * 1024, limits: Limits | None = None
) -> dict[str, bytes]:
    """Return the contents of those of the named files that an archive holds.

    Args:
        file: seekable; read from its beginning.
        names: paths in the snapshot; a symbolic link is followed.
        limit: octets that are kept of each file; the rest is cut off.
        limits: as in `inspect`.

    Raises:
        InvalidSnapshot: as in `inspect`.
    """
    file.seek(0)
    links = {member.name: member.target for member in inspect(file, limits).members if member.target}
    wanted: dict[str, list[str]] = {}
    for name in names:
        wanted.setdefault("/".join(_resolve(links, name)), []).append(name)
    found: dict[str, bytes] = {}
    file.seek(0)
    for member, content in _read(file, limits or Limits.from_env()):
        if member.kind is Kind.FILE and member.name in wanted:
            kept = bytearray()
            for chunk in content:
                kept += chunk[: limit - len(kept)]
            found.update(dict.fromkeys(wanted[member.name], bytes(kept)))
    return found


def unpack(file: BinaryIO, dest: Path, limits: Limits | None = None) -> Listing:
    """Unpack an archive into a new folder, which appears complete or not at all.

    Everything is validated again while it is written, into a folder beside `dest` that is renamed at
    the end. Files become 0644 or 0755, folders 0755; links are made last, so that nothing is ever
    written through one.

    Args:
        file: read from its current position to its end.
        dest: does not exist yet; its parent does.
        limits: as in `inspect`.

    Raises:
        InvalidSnapshot: as in `inspect`; nothing is left behind.
        FileExistsError: `dest` exists.
        OSError: the disk is full, or the like; nothing is left behind.
    """
    limits = limits or Limits.from_env()
    if os.path.lexists(dest):
        raise FileExistsError(f"{dest} exists")
    rules = _Rules(limits)
    members: list[Member] = []
    draft = dest.parent / f".{dest.name}.{secrets.token_hex(6)}"
    draft.mkdir(mode=0o755)
    try:
        for member, content in _read(file, limits):
            rules.admit(member)
            members.append(member)
            if member.kind is Kind.FOLDER:
                _make_folder(draft, member.name)
            elif member.kind is Kind.FILE:
                _write_file(draft, member, content)
        rules.finish()
        for member in members:
            if member.kind is Kind.LINK:
                _make_folder(draft, os.path.dirname(member.name))
                os.symlink(member.target, draft / member.name)
        os.rename(draft, dest)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Listing(members=tuple(members), unpacked=rules.unpacked)


class _Rules:
    """What a set of members must keep to, however it came to us.

    A member is refused when it is seen; what depends on the whole set (where links lead, what is below
    a file) is checked by `finish`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kinds: dict[str, Kind] = {}
        self._links: dict[str, str] = {}
        self.unpacked = 0

    def admit(self, member: Member) -> None:
        """Raise InvalidSnapshot if this member may not be in a snapshot."""
        name = member.name
        _check_name(name)
        if name in self._kinds:
            raise InvalidSnapshot(f"{_shown(name)} is in the archive twice: pack the folder anew.")
        if len(self._kinds) >= self._limits.files:
            raise InvalidSnapshot(
                f"There are more than {self._limits.files} files: list what the program "
                "does not need in .gitignore or .dockerignore."
            )
        self.unpacked += member.size
        if self.unpacked > self._limits.unpacked:
            raise InvalidSnapshot(
                f"Unpacked it is larger than {_size(self._limits.unpacked)}: list what the program "
                "does not need in .gitignore or .dockerignore."
            )
        parents = name.split("/")[:-1]
        for depth in range(len(parents), 0, -1):
            parent = "/".join(parents[:depth])
            if self._kinds.get(parent, Kind.FOLDER) is not Kind.FOLDER:
                raise InvalidSnapshot(f"{_shown(name)} lies below {_shown(parent)}, which is not a folder.")
        self._kinds[name] = member.kind
        if member.kind is Kind.LINK:
            if not member.target or "\0" in member.target or len(_octets(member.target)) > MAX_NAME_OCTETS:
                raise InvalidSnapshot(f"The link {_shown(name)} has no usable target: remove it.")
            self._links[name] = member.target

    def finish(self) -> None:
        """Raise InvalidSnapshot if the members together may not be a snapshot."""
        for name in self._kinds:
            parents = name.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                parent = "/".join(parents[:depth])
                if self._kinds.get(parent, Kind.FOLDER) is not Kind.FOLDER:
                    raise InvalidSnapshot(
                        f"{_shown(name)} lies below {_shown(parent)}, which is not a folder."
                    )
        for name in self._links:
            _resolve(self._links, name)


def _check_name(name: str) -> None:
    octets = _octets(name)
    if not name or "\0" in name:
        raise InvalidSnapshot("A name in the archive is empty or holds a NUL: pack the folder anew.")
    if name.startswith("/"):
        raise InvalidSnapshot(f"{_shown(name)} is an absolute path: pack the folder with relative names.")
    parts = name.split("/")
    if ".." in parts or "." in parts or "" in parts:
        raise InvalidSnapshot(f"{_shown(name)} could leave the folder: pack with plain relative names.")
    if len(octets) > MAX_NAME_OCTETS or any(len(_octets(part)) > MAX_COMPONENT_OCTETS for part in parts):
        raise InvalidSnapshot(
            f"{_shown(name)} is too long: at most {MAX_NAME_OCTETS} octets, {MAX_COMPONENT_OCTETS} in one part."
        )
    if any(part.casefold() == _ALWAYS_OUT for part in parts):
        raise InvalidSnapshot(f"{_shown(name)} belongs to git's own folder: pack without .git.")


def _resolve(links: dict[str, str], name: str) -> list[str]:
    """Return the parts of the path that a name stands for once every link on the way is followed.

    Follows the rules of path_resolution(7) on names alone: a link's target is read from the folder that
    the link is in, after that folder's own links.

    Raises:
        InvalidSnapshot: the way leads out of the folder, or round in a circle.
    """
    pending = name.split("/")[::-1]
    done: list[str] = []
    hops = 0
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not done:
                raise InvalidSnapshot(_leaves(name))
            done.pop()
            continue
        done.append(part)
        target = links.get("/".join(done))
        if target is None:
            continue
        hops += 1
        if hops > MAX_LINK_HOPS:
            raise InvalidSnapshot(f"The link {_shown(name)} leads round in a circle: remove it.")
        if target.startswith("/"):
            raise InvalidSnapshot(_leaves(name))
        done.pop()
        pending.extend(target.split("/")[::-1])
    return done


def _leaves(name: str) -> str:
    return (
        f"The link {_shown(name)} points outside of the folder: remove it, or list it in .gitignore "
        "or .dockerignore."
    )


def _octets(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidSnapshot(f"{_shown(text)} is not named in UTF-8: rename it.") from None


def _shown(name: str) -> str:
    """Return a name as it may stand in a message: printable, and not too long."""
    text = ascii(name) if not name.isprintable() else repr(name)
    return text if len(text) <= 120 else f"{text[:116]}…{text[-1]}"


def _size(octets: int) -> str:
    return f"{octets // 1024 // 1024} MiB" if octets >= 1024 * 1024 else f"{octets} bytes"


# Packing


class _Sink:
    """Writes to a file, and keeps the digest and the size of what went through."""

    def __init__(self, out: BinaryIO, limit: int) -> None:
        self._out = out
        self._limit = limit
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, octets: bytes) -> int:
        self.size += len(octets)
        if self.size > self._limit:
            raise InvalidSnapshot(
                f"Packed it is larger than {_size(self._limit)} (SNAPSHOT_MAX_BYTES): list what the "
                "program does not need in .gitignore or .dockerignore."
            )
        self.digest.update(octets)
        self._out.write(octets)
        return len(octets)

    def flush(self) -> None:
        self._out.flush()


def _add_file(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidSnapshot(f"{_shown(entry.name)} cannot be read: {error.strerror}.") from error
    with os.fdopen(descriptor, "rb") as file:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode) or seen.st_size != entry.size:
            raise InvalidSnapshot(f"{_shown(entry.name)} changed while it was packed: pack again.")
        try:
            archive.addfile(entry, file)
        except OSError as error:
            if error.errno is not None:
                raise
            raise InvalidSnapshot(f"{_shown(entry.name)} changed while it was packed: pack again.") from error


def _walk(folder: Path) -> Iterator[tuple[Member, Path]]:
    """Yield what is packed, in the order of names, each folder before what is in it."""
    docker = _DockerIgnore.of(folder)
    yield from _walk_folder(folder, "", (_gitignore(folder),), docker)


def _walk_folder(
    folder: Path,
    prefix: str,
    gitignores: "tuple[_GitIgnore | None, ...]",
    docker: "_DockerIgnore",
) -> Iterator[tuple[Member, Path]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidSnapshot(f"{_shown(prefix or '.')} cannot be read: {error.strerror}.") from error
    for entry in entries:
        if entry.name.casefold() == _ALWAYS_OUT:
            continue
        name = f"{prefix}{entry.name}"
        _octets(name)
        is_folder = entry.is_dir(follow_symlinks=False)
        if _git_ignores(gitignores, name, is_folder):
            continue
        ignored = docker.ignores(name)
        path = Path(entry.path)
        if is_folder:
            below = _walk_folder(path, f"{name}/", (*gitignores, _gitignore(path)), docker)
            if not ignored:
                yield Member(name, Kind.FOLDER), path
                yield from below
            elif docker.takes_back:
                yield from below
            continue
        if ignored:
            continue
        yield _member(entry, name), path


def _member(entry: "os.DirEntry[str]", name: str) -> Member:
    seen = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(seen.st_mode):
        return Member(name, Kind.FILE, size=seen.st_size, executable=bool(seen.st_mode & stat.S_IXUSR))
    if stat.S_ISLNK(seen.st_mode):
        return Member(name, Kind.LINK, target=os.readlink(entry.path))
    raise InvalidSnapshot(
        f"{_shown(name)} is a device, pipe or socket: remove it, or list it in .gitignore or .dockerignore."
    )


class _GitIgnore:
    """One `.gitignore`: the last pattern that matches a path itself decides (gitignore(5)).

    pathspec lets a pattern match all that lies below what it matches, too. Here folders are asked for
    before what is in them, as git does, so its expressions are narrowed to the path itself: otherwise
    `a` and `!/a` would take back `/a/a` as well.
    """

    def __init__(self, lines: list[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for line in lines:
            try:
                pattern = GitIgnoreSpecPattern(line)
            except ValueError:
                continue  # git passes over a pattern that it cannot read
            if pattern.include is not None and pattern.regex is not None:
                self._rules.insert(0, (_narrowed(str(pattern.regex.pattern)), pattern.include))

    def verdict(self, path: str) -> bool | None:
        """Say whether a path is ignored, None where no pattern speaks of it; folders end in a slash."""
        return next((ignored for rule, ignored in self._rules if rule.search(path)), None)


def _narrowed(expression: str) -> re.Pattern[str]:
    if "?P<ps_d>" in expression:
        return re.compile(rf"(?:{expression})\Z", re.DOTALL)
    return re.compile(f"{expression}." if expression.endswith("/") else expression, re.DOTALL)


def _gitignore(folder: Path) -> _GitIgnore | None:
    lines = _lines(folder / ".gitignore")
    return _GitIgnore(lines) if lines else None


def _is_pattern(line: str) -> bool:
    try:
        GitIgnoreSpecPattern(line)
    except ValueError:
        return False
    return True


def _lines(path: Path) -> list[str]:
    # git follows no link to a .gitignore; neither does this, so that packing reads only the folder.
    if path.is_symlink() or not path.is_file():
        return []
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise InvalidSnapshot(f"{path.name} cannot be read: {error.strerror}.") from error


def _git_ignores(gitignores: "tuple[_GitIgnore | None, ...]", name: str, is_folder: bool) -> bool:
    """Say what the nearest .gitignore that has a pattern for this name says.

    Folders that are ignored are never entered, so a parent's verdict is not asked for again.
    """
    parts = name.split("/")
    for depth in range(len(gitignores) - 1, -1, -1):
        spec = gitignores[depth]
        if spec is None:
            continue
        verdict = spec.verdict("/".join(parts[depth:]) + ("/" if is_folder else ""))
        if verdict is not None:
            return verdict
    return False


class _DockerIgnore:
    """A `.dockerignore`: patterns from the top folder, the last that matches decides, `!` takes back."""

    def __init__(self, lines: list[str]) -> None:
        patterns = [pattern for line in lines if (pattern := self._translate(line)) and _is_pattern(pattern)]
        self._spec = pathspec.PathSpec.from_lines("gitignore", patterns, backend="simple")
        self.takes_back = any(pattern.startswith("!") for pattern in patterns)

    @classmethod
    def of(cls, folder: Path) -> "_DockerIgnore":
        return cls(_lines(folder / ".dockerignore"))

    def ignores(self, name: str) -> bool:
        return bool(self._spec.check_file(name).include)

    @staticmethod
    def _translate(line: str) -> str:
        """Return the .gitignore pattern of a line: Docker's are all rooted, and end in no slash."""
        line = line.strip()
        if line.startswith("#"):
            return ""
        back = "!" if line.startswith("!") else ""
        path = os.path.normpath(line.removeprefix("!").strip().lstrip("/") or ".")
        if path == ".":
            return ""
        return f"{back}/{path}"


# Reading


class _Source:
    """Reads the octets of the tar out of a gzip stream, never more of either than the limits allow."""

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._packed = 0
        self._unpacked = 0
        # Headers and padding come on top of the files' own octets.
        self._most = limits.unpacked + (limits.files + 2) * 4 * _BLOCK
        self._gzip = gzip.GzipFile(fileobj=self, mode="rb")  # type: ignore[call-overload]

    def read(self, size: int = -1) -> bytes:
        """Read packed octets; gzip calls it."""
        octets = self._file.read(size if 0 <= size <= _CHUNK else _CHUNK)
        self._packed += len(octets)
        if self._packed > self._limits.packed:
            raise InvalidSnapshot(
                f"The archive is larger than {_size(self._limits.packed)} (SNAPSHOT_MAX_BYTES): list what "
                "the program does not need in .gitignore or .dockerignore."
            )
        return octets

    def take(self, size: int) -> bytes:
        """Return up to this many octets of the tar; fewer only at its end."""
        parts: list[bytes] = []
        wanted = size
        while wanted:
            try:
                octets = self._gzip.read(wanted)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InvalidSnapshot(
                    "The archive is broken or not gzip-compressed: pack and send it again."
                ) from error
            if not octets:
                break
            self._unpacked += len(octets)
            if self._unpacked > self._most:
                raise InvalidSnapshot(
                    f"Unpacked it is larger than {_size(self._limits.unpacked)}: list what the program "
                    "does not need in .gitignore or .dockerignore."
                )
            parts.append(octets)
            wanted -= len(octets)
        return b"".join(parts)

    def exactly(self, size: int) -> bytes:
        """Return this many octets of the tar."""
        octets = self.take(size)
        if len(octets) != size:
            raise InvalidSnapshot("The archive ends too early: pack and send it again.")
        return octets


def _read(file: BinaryIO, limits: Limits) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """Yield each member with its content, to be read before the next is asked for (or left)."""
    source = _Source(file, limits)
    longer: dict[str, str] = {}
    seen_any = False
    while True:
        block = source.take(_BLOCK)
        if not block and seen_any:
            break
        if len(block) != _BLOCK:
            raise InvalidSnapshot("The archive ends too early: pack and send it again.")
        if not any(block):
            break
        seen_any = True
        header = _Header.parse(block)
        if header.type in (b"x", b"g", b"L", b"K"):
            if header.size > _MAX_HEADER_RECORDS:
                raise InvalidSnapshot("A name in the archive is too long: pack the folder anew.")
            records = source.exactly(header.size)
            source.exactly(-header.size % _BLOCK)
            longer |= _long_names(header.type, records)
            continue
        size = _decimal(longer["size"]) if "size" in longer else header.size
        member = _as_member(
            header, longer.get("path", header.name), longer.get("linkpath", header.target), size
        )
        longer = {}
        content = _content(source, member.size if member else 0)
        if member is not None:
            yield member, content
        for _ in content:
            pass
    if longer:
        raise InvalidSnapshot("The archive ends too early: pack and send it again.")
    while rest := source.take(_CHUNK):
        if any(rest):
            raise InvalidSnapshot("Something follows the end of the archive: pack and send it again.")


def _content(source: _Source, size: int) -> Iterator[bytes]:
    left = size
    while left:
        octets = source.exactly(min(left, _CHUNK))
        left -= len(octets)
        yield octets
    source.exactly(-size % _BLOCK)


@dataclass(frozen=True, slots=True)
class _Header:
    """One header block of a tar, its checksum verified."""

    name: str
    mode: int
    size: int
    type: bytes
    target: str

    @classmethod
    def parse(cls, block: bytes) -> "_Header":
        blanked = block[:148] + b" " * 8 + block[156:]
        if _octal(block[148:156]) != sum(blanked):
            raise InvalidSnapshot("The archive is broken (a header's checksum is wrong): pack it again.")
        name = _field(block[0:100])
        if block[257:263] == b"ustar\0" and (prefix := _field(block[345:500])):
            name = f"{prefix}/{name}"
        return cls(
            name=name,
            mode=_octal(block[100:108]),
            size=_octal(block[124:136]),
            type=block[156:157],
            target=_field(block[157:257]),
        )


def _as_member(header: _Header, name: str, target: str, size: int) -> Member | None:
    """Return the member of a header, or None for the entry of the packed folder itself."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    if header.type == b"5" or (header.type in (b"0", b"\0") and name.endswith("/")):
        name = name.rstrip("/") if name != "/" else name
        if size:
            raise InvalidSnapshot(f"The folder {_shown(name)} has a content: pack it again.")
        return Member(name, Kind.FOLDER) if name not in ("", ".") else None
    if header.type in (b"0", b"\0", b"7"):
        return Member(name, Kind.FILE, size=size, executable=bool(header.mode & stat.S_IXUSR))
    if header.type == b"2":
        if size:
            raise InvalidSnapshot(f"The link {_shown(name)} has a content: pack it again.")
        return Member(name, Kind.LINK, target=target)
    if header.type == b"1":
        raise InvalidSnapshot(
            f"{_shown(name)} is a hard link to {_shown(target)}: pack it as a file (tar --hard-dereference)."
        )
    what = {b"3": "a character device", b"4": "a block device", b"6": "a pipe", b"S": "a sparse file"}
    raise InvalidSnapshot(
        f"{_shown(name)} is {what.get(header.type, 'of an unknown type')}: "
        "only files, folders and symbolic links can be packed."
    )


def _long_names(kind: bytes, records: bytes) -> dict[str, str]:
    """Return path, linkpath and size out of an extended header (pax) or a GNU long name."""
    if kind in (b"L", b"K"):
        return {"path" if kind == b"L" else "linkpath": _text(records.removesuffix(b"\0"))}
    found: dict[str, str] = {}
    while records:
        length, space, _ = records.partition(b" ")
        end = _decimal(_text(length[:8])) if space else 0
        record = records[len(length) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise InvalidSnapshot("The archive is broken (an extended header): pack it again.")
        records = records[end:]
        if key.startswith(b"GNU.sparse"):
            raise InvalidSnapshot("The archive holds a sparse file: pack without --sparse.")
        if key in (b"path", b"linkpath", b"size"):
            if kind == b"g":
                raise InvalidSnapshot("The archive names all its members at once: pack it again.")
            found[_text(key)] = _text(value)
    return found


def _field(octets: bytes) -> str:
    return _text(octets.partition(b"\0")[0])


def _text(octets: bytes) -> str:
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        raise InvalidSnapshot(
            f"{_shown(octets.decode('utf-8', 'replace'))} is not named in UTF-8: rename it."
        ) from None
    if "\0" in text:
        raise InvalidSnapshot("A name in the archive holds a NUL: pack the folder anew.")
    return text


def _octal(octets: bytes) -> int:
    text = octets.partition(b"\0")[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", text):
        raise InvalidSnapshot("The archive is broken (a header's number): pack it again.")
    return int(text or b"0", 8)


def _decimal(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise InvalidSnapshot("The archive is broken (an extended header's number): pack it again.")
    return int(text)


# Writing what was read


def _make_folder(root: Path, name: str) -> None:
    """Make a folder and those above it; every part that exists is a folder that we made."""
    path = root
    for part in name.split("/") if name else ():
        path = path / part
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise InvalidSnapshot(f"{_shown(name)} is in the archive twice: pack it anew.") from None


def _write_file(root: Path, member: Member, content: Iterator[bytes]) -> None:
    _make_folder(root, os.path.dirname(member.name))
    mode = 0o755 if member.executable else 0o644
    try:
        descriptor = os.open(root / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise InvalidSnapshot(
            f"{_shown(member.name)} is in the archive twice for this file system: rename one."
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        for octets in content:
            file.write(octets)
        os.fchmod(descriptor, mode)
