"""Snapshots: the same folder gives the same archive, and no archive reaches outside of its folder."""

import gzip
import hashlib
import io
import os
import random
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unkey import snapshots
from unkey.errors import InvalidSnapshot
from unkey.snapshots import Kind, Limits, Member

LIMITS = Limits(packed=1024 * 1024, unpacked=4 * 1024 * 1024, files=200)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def packed(folder: Path) -> tuple[snapshots.Packed, io.BytesIO]:
    out = io.BytesIO()
    result = snapshots.pack(folder, out, LIMITS)
    out.seek(0)
    return result, out


def names(folder: Path) -> list[str]:
    return [
        member.name
        for member in snapshots.inspect(packed(folder)[1], LIMITS).members
        if member.kind is not Kind.FOLDER
    ]


def archive(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=format) as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    out.seek(0)
    return out


def entry(name: str, type: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = type, target, mode
    return made


def refusal(file: io.BytesIO, limits: Limits = LIMITS) -> str:
    """Return why an archive is refused, having checked that unpacking refuses it too and leaves nothing."""
    with pytest.raises(InvalidSnapshot) as seen:
        snapshots.inspect(file, limits)
    file.seek(0)
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(InvalidSnapshot):
            snapshots.unpack(file, Path(folder) / "out", limits)
        assert os.listdir(folder) == []
    return seen.value.detail


def test_equal_content_packs_to_equal_octets_whatever_times_and_modes(tmp_path):
    files = {"app.py": "print('hello')", "static/a.txt": "a", "Procfile": "web: python app.py"}
    first, second = write(tmp_path / "one", files), write(tmp_path / "two", dict(reversed(files.items())))
    os.utime(second / "app.py", (1, 1))
    os.chmod(second / "app.py", 0o600)
    one, out = packed(first)
    two, other = packed(second)
    assert one == two
    assert out.getvalue() == other.getvalue()
    assert one.digest == hashlib.sha256(out.getvalue()).hexdigest()
    assert (one.size, one.files) == (len(out.getvalue()), 3)
    assert one.reference == f"snapshot@sha256:{one.digest}"
    os.chmod(second / "app.py", 0o700)
    assert packed(second)[0].digest != one.digest


def test_unpacked_snapshot_equals_the_folder_with_plain_modes(tmp_path):
    source = write(
        tmp_path / "source", {"run.sh": "#!/bin/sh", "a/b/c.txt": "c", "ü" * 90 + "/x" * 60: "deep"}
    )
    os.chmod(source / "run.sh", 0o6755)
    os.symlink("a/b", source / "short")
    (source / "empty").mkdir()
    result, out = packed(source)
    listing = snapshots.unpack(out, tmp_path / "dest", LIMITS)
    assert listing.files == result.files == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "source"]
    assert stat.S_IMODE((tmp_path / "dest/run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "dest/a/b/c.txt").stat().st_mode) == 0o644
    assert os.readlink(tmp_path / "dest/short") == "a/b"
    assert (tmp_path / "dest/empty").is_dir()
    assert packed(tmp_path / "dest")[0].digest == result.digest


def test_members_are_read_by_name_and_through_links(tmp_path):
    source = write(tmp_path / "source", {"deploy/Procfile": "web: x", "b.txt": "b" * 100})
    os.symlink("deploy/Procfile", source / "Procfile")
    _, out = packed(source)
    assert snapshots.read_members(out, ["Procfile", "b.txt", "missing"], limit=10) == {
        "Procfile": b"web: x",
        "b.txt": b"b" * 10,
    }
    assert "b.txt" in snapshots.inspect(io.BytesIO(out.getvalue()), LIMITS)


GITIGNORE = """
# comment
*.log
!keep.log
/top.txt
build/
docs/*
!docs/readme.md
**/cache/*.bin
\\#odd
trailing\\\x20
sub/deep
[unclosed
"""


def test_gitignore_files_are_read_as_git_reads_them(tmp_path):
    source = write(
        tmp_path,
        {
            ".gitignore": GITIGNORE,
            "sub/.gitignore": "!*.log\n/own.txt\nx/\n",
            **dict.fromkeys(
                [
                    "a.log", "keep.log", "top.txt", "sub/top.txt", "build/x", "sub/build/y", "docs/a.md",
                    "docs/readme.md", "docs/more/b", "cache/a.bin", "sub/cache/b.bin", "sub/cache/b.txt",
                    "#odd", "trailing ", "sub/deep/file", "sub/a.log", "sub/own.txt", "sub/in/own.txt",
                    "x/kept", "sub/x/gone", ".dotfile", "[unclosed",
                ],
                "",
            ),
        },
    )  # fmt: skip
    subprocess.run(["git", "init", "-q"], cwd=source, check=True)
    seen = subprocess.run(
        ["git", "ls-files", "-z", "--others", "--exclude-standard"],
        cwd=source,
        check=True,
        capture_output=True,
    )
    assert sorted(names(source)) == sorted(seen.stdout.decode().rstrip("\0").split("\0"))


@settings(max_examples=25, deadline=None)
@example(["a", "!/a"], [])
@example(["*", "!*/", "!*.py", "a/**", "!/b/**/c"], ["!*/"])
@given(
    st.lists(
        st.from_regex(r"!?/?(\*\*/)?[ab*](/[abc*]|[?b]){0,2}/?", fullmatch=True), min_size=1, max_size=5
    ),
    st.lists(st.from_regex(r"!?/?[ab*](/[abc*])?/?", fullmatch=True), max_size=2),
)
def test_any_gitignore_keeps_what_git_keeps(top, nested):
    with tempfile.TemporaryDirectory() as folder:
        source = write(
            Path(folder), dict.fromkeys(["a/a/c", "a/b", "b/a/b", "b/c", "c/a/a", "c/b", "ab"], "")
        )
        write(source, {".gitignore": "\n".join(top), "b/.gitignore": "\n".join(nested), "zz": ""})
        subprocess.run(["git", "init", "-q"], cwd=source, check=True)
        seen = subprocess.run(
            ["git", "ls-files", "-z", "-o", "--exclude-standard"], cwd=source, check=True, capture_output=True
        )
        expected = sorted(filter(None, seen.stdout.decode().split("\0")))
        try:
            assert sorted(names(source)) == expected
        except InvalidSnapshot:
            assert expected == []


def test_dockerignore_patterns_are_rooted_and_can_take_back(tmp_path):
    source = write(
        tmp_path,
        {
            ".dockerignore": "# comment\n*.md\n!README.md\nvendor/\n!vendor/keep.txt\n**/*.tmp\n./x\n",
            **dict.fromkeys(
                ["README.md", "b.md", "sub/b.md", "vendor/a", "vendor/keep.txt", "a.tmp", "sub/a.tmp", "x/y"],
                "",
            ),
        },
    )
    assert names(source) == [".dockerignore", "README.md", "sub/b.md", "vendor/keep.txt"]


def test_git_folder_never_goes_in(tmp_path):
    source = write(
        tmp_path, {"app.py": "", ".git/config": "secret", "sub/.git": "gitdir: x", ".github/x": ""}
    )
    assert names(source) == [".github/x", "app.py"]


@pytest.mark.parametrize(
    ("name", "target"),
    [("out", "../secret"), ("abs", "/etc/passwd"), ("round", "round"), ("a/b", "../../x")],
)
def test_folder_with_a_link_that_leaves_is_not_packed(tmp_path, name, target):
    source = write(tmp_path / "source", {"app.py": ""})
    (source / name).parent.mkdir(exist_ok=True)
    os.symlink(target, source / name)
    with pytest.raises(InvalidSnapshot, match=name):
        packed(source)


def test_what_cannot_be_packed_is_named(tmp_path):
    with pytest.raises(InvalidSnapshot, match="is not a folder"):
        packed(tmp_path / "missing")
    with pytest.raises(InvalidSnapshot, match="no files to pack"):
        packed(tmp_path)
    os.mkfifo(tmp_path / "queue")
    with pytest.raises(InvalidSnapshot, match="'queue' is a device, pipe or socket"):
        packed(tmp_path)
    os.unlink(tmp_path / "queue")
    os.close(os.open(os.fsencode(tmp_path) + b"/bad\xff", os.O_CREAT))
    with pytest.raises(InvalidSnapshot, match="is not named in UTF-8"):
        packed(tmp_path)
    os.unlink(os.fsencode(tmp_path) + b"/bad\xff")
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(LIMITS.packed + 1))
    with pytest.raises(InvalidSnapshot, match=r"larger than 1 MiB \(SNAPSHOT_MAX_BYTES\)"):
        packed(tmp_path)


REFUSED = {
    "parent": ([(entry("../x"), b"")], "could leave the folder"),
    "inner parent": ([(entry("a/../../x"), b"")], "could leave the folder"),
    "absolute": ([(entry("/etc/x"), b"")], "absolute path"),
    "link out": ([(entry("l", tarfile.SYMTYPE, "../x"), b"")], "points outside"),
    "link absolute": ([(entry("l", tarfile.SYMTYPE, "/x"), b"")], "points outside"),
    "link through link": (
        [(entry("a/up", tarfile.SYMTYPE, ".."), b""), (entry("out", tarfile.SYMTYPE, "a/up/../x"), b"")],
        "points outside",
    ),
    "write through link": (
        [(entry("l", tarfile.SYMTYPE, "a"), b""), (entry("l/x"), b"1")],
        "lies below 'l'",
    ),
    "link over folder": (
        [(entry("l/x"), b"1"), (entry("l", tarfile.SYMTYPE, "a"), b"")],
        "lies below 'l'",
    ),
    "twice": ([(entry("a"), b"1"), (entry("a"), b"2")], "twice"),
    "twice by dot": ([(entry("a"), b"1"), (entry("./a"), b"2")], "twice"),
    "hard link": ([(entry("a"), b"1"), (entry("b", tarfile.LNKTYPE, "a"), b"")], "hard link"),
    "device": ([(entry("d", tarfile.CHRTYPE), b"")], "character device"),
    "pipe": ([(entry("d", tarfile.FIFOTYPE), b"")], "pipe"),
    "git": ([(entry("a/.GIT/hooks/x"), b"")], "git's own folder"),
    "long part": ([(entry("a" * 256), b"")], "too long"),
    "long name": ([(entry("a/" * 600 + "a"), b"")], "too long"),
    "circle": (
        [(entry("a", tarfile.SYMTYPE, "b"), b""), (entry("b", tarfile.SYMTYPE, "a"), b"")],
        "circle",
    ),
    "many": ([(entry(f"f{number}"), b"") for number in range(201)], "more than 200 files"),
    "bomb": ([(entry("zeros"), b"\0" * (4 * 1024 * 1024 + 1))], "Unpacked it is larger than 4 MiB"),
    "file below file": ([(entry("a"), b"1"), (entry("a/b"), b"1")], "lies below 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_archive_that_could_do_harm_is_refused_and_leaves_nothing(case, format):
    entries, reason = REFUSED[case]
    assert reason in refusal(archive(*entries, format=format))


def test_broken_archives_are_refused(tmp_path):
    _, whole = packed(write(tmp_path, {"a.txt": "a" * 5000, "b.txt": "b"}))
    octets = whole.getvalue()
    tar = gzip.decompress(octets)
    assert "broken or not gzip" in refusal(io.BytesIO(b"PK\x03\x04 a zip file"))
    assert "ends too early" in refusal(io.BytesIO(b""))
    assert "broken or not gzip" in refusal(io.BytesIO(octets[:-9]))
    assert "ends too early" in refusal(io.BytesIO(gzip.compress(tar[:3000])))
    assert "Something follows" in refusal(io.BytesIO(gzip.compress(tar + b"x")))
    assert "a header's number" in refusal(io.BytesIO(gzip.compress(b"x" * 1024)))
    damaged = tar.index(b"b.txt")
    assert "checksum" in refusal(io.BytesIO(gzip.compress(tar[:damaged] + b"c" + tar[damaged + 1 :])))
    assert "SNAPSHOT_MAX_BYTES" in refusal(whole, Limits(packed=10, unpacked=10_000))
    huge = entry("x")
    huge.pax_headers = {"comment": "c" * 100_000}
    assert "too long" in refusal(archive((huge, b"")))


def test_archive_of_the_tar_program_is_understood(tmp_path):
    source = write(tmp_path / "source", {"a/" + "long" * 20 + "/" + "more" * 20: "1", "b": "2"})
    for form in ("gnu", "posix", "ustar"):
        made = subprocess.run(
            ["tar", "czf", "-", f"--format={form}", "-C", source, "."], check=True, capture_output=True
        ).stdout
        listing = snapshots.inspect(io.BytesIO(made), LIMITS)
        assert {member.name for member in listing.members} == {
            "a",
            "b",
            "a/" + "long" * 20,
            "a/" + "long" * 20 + "/" + "more" * 20,
        }


def test_size_and_mode_bits_come_from_the_archive():
    listing = snapshots.inspect(archive((entry("run", mode=0o4711), b"123"), (entry("text"), b"")), LIMITS)
    assert listing.members == (
        Member("run", Kind.FILE, size=3, executable=True),
        Member("text", Kind.FILE),
    )
    assert (listing.files, listing.unpacked) == (2, 3)


def test_unpacking_over_something_is_an_error(tmp_path):
    (tmp_path / "there").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        snapshots.unpack(archive((entry("a"), b"")), tmp_path / "there", LIMITS)


def test_reference_is_read_back_and_nothing_else_is():
    digest = "0123456789abcdef" * 4
    assert snapshots.parse_reference(snapshots.reference(digest)) == digest
    for text in (
        "",
        digest,
        f"snapshot@sha256:{digest.upper()}",
        f"snapshot@sha256:{digest}\n",
        "nginx:latest",
    ):
        with pytest.raises(InvalidSnapshot):
            snapshots.parse_reference(text)


PARTS = st.sampled_from(["a", "b", "..", ".", "", "c", "up", ".git", "x" * 300, "é"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
ENTRIES = st.lists(
    st.builds(
        entry,
        PATHS,
        st.sampled_from(
            [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE]
        ),
        PATHS,
        st.integers(0, 0o7777),
    ),
    max_size=6,
)


def check_contained(octets: bytes) -> None:
    """Unpack, and look at the whole world around: either a refusal and nothing, or all of it inside."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        write(root, {"secret": "untouched", "deep/er/sibling": "untouched"})
        dest = root / "deep/er/dest"
        try:
            snapshots.unpack(io.BytesIO(octets), dest, LIMITS)
        except InvalidSnapshot:
            assert not dest.exists()
        else:
            for parent, folders, files in os.walk(dest):
                for name in folders + files:
                    path = Path(parent, name)
                    assert stat.S_IMODE(path.lstat().st_mode) & 0o7000 == 0
                    assert Path(os.path.realpath(path)).is_relative_to(dest)
        assert sorted(os.listdir(root)) == ["deep", "secret"]
        assert set(os.listdir(root / "deep/er")) <= {"sibling", "dest"}
        assert (root / "secret").read_text() == (root / "deep/er/sibling").read_text() == "untouched"


@settings(max_examples=200, deadline=None)
@given(ENTRIES, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_no_set_of_members_escapes(entries, format):
    check_contained(
        archive(*((made, b"x" if made.isreg() else b"") for made in entries), format=format).getvalue()
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_to_an_archive_escapes_or_crashes(data):
    tar = bytearray(
        gzip.decompress(
            archive(
                (entry("a", tarfile.DIRTYPE), b""),
                (entry("a/file"), b"content"),
                (entry("l", tarfile.SYMTYPE, "a/file"), b""),
                (entry("long" * 30), b"content"),
            ).getvalue()
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.integers(0, len(tar) // 512 - 1)) * 512
        field = data.draw(
            st.sampled_from([(0, 100), (100, 108), (124, 136), (156, 157), (157, 257), (345, 500)])
        )
        octets = data.draw(
            st.binary(max_size=field[1] - field[0]) | st.sampled_from([b"../x", b"/x", b"777"])
        )
        tar[block + field[0] : block + field[0] + len(octets)] = octets
        if data.draw(st.booleans()):
            total = sum(tar[block : block + 148]) + 8 * 32 + sum(tar[block + 156 : block + 512])
            tar[block + 148 : block + 156] = b"%06o\0 " % total
    packed = gzip.compress(bytes(tar), 1)
    cut = data.draw(st.sampled_from([len(packed), len(packed) - 1, len(packed) // 2]))
    check_contained(packed[:cut])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000), st.booleans())
def test_noise_is_refused(octets, compressed):
    check_contained(gzip.compress(octets) if compressed else octets)
