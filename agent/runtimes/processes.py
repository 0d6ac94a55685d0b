"""Processes as the kernel tells of them: is this pid still the same process, what belongs to it, end it."""

import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

MARK = "UNKEY_INSTANCE_FOLDER"


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for good: a pid is given out again, a pid with its start time within one boot is not.

    Args:
        pid: process id; also its process group and session, since it leads both.
        started: start time in clock ticks since boot (field 22 of /proc/<pid>/stat, proc(5)).
        boot: the kernel's id of this boot.
    """

    pid: int
    started: int
    boot: str


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity(pid: int) -> Identity | None:
    """Return who a pid is now, or None where it is nobody or a zombie."""
    found = _stat(pid)
    if found is None or found.state in "ZX":
        return None
    return Identity(pid, found.started, boot_id())


def is_alive(process: Identity) -> bool:
    """Say whether this very process still runs."""
    return process.boot == boot_id() and identity(process.pid) == process


def members(process: Identity | None, mark: str) -> list[int]:
    """Return the pids of an instance: its group, its session, and what else carries its mark.

    The mark is the instance's folder in its environment, inherited by all that it starts, also by what
    left the group and the session. The group is asked only while its leader's pid cannot have been
    given to a stranger: the kernel gives out no pid that is still some group's id.
    """
    wanted = f"{MARK}={mark}".encode()
    trusted = process is not None and process.boot == boot_id()
    found: list[int] = []
    for pid in psutil.pids():
        if pid == os.getpid():
            continue
        stat = _stat(pid)
        if stat is None or stat.state in "ZX":
            continue
        belongs = (
            trusted
            and process is not None
            and process.pid in (stat.group, stat.session)
            and stat.started >= process.started
            and _leader_fits(process)
        )
        if belongs or wanted in _environment(pid):
            found.append(pid)
    return found


def end(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each process; those that have gone meanwhile are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def marked(folder: str) -> dict[int, str]:
    """Return the pids that carry the mark of an instance in a folder, and which mark."""
    prefix = f"{MARK}={folder}/".encode()
    found: dict[int, str] = {}
    for pid in psutil.pids():
        for variable in _environment(pid):
            if variable.startswith(prefix):
                found[pid] = variable[len(MARK) + 1 :].decode(errors="surrogateescape")
    return found


def usage(instances: Mapping[str, tuple[Identity, str]]) -> dict[str, tuple[float, int]]:
    """Return CPU seconds and octets of memory of instances, all of them in one walk over /proc.

    A process's children that have ended and were waited for are counted with it.

    Args:
        instances: leader and mark by name.
    """
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    leaders = {leader.pid: (name, leader) for name, (leader, _) in instances.items()}
    marks = {f"{MARK}={mark}".encode(): name for name, (_, mark) in instances.items()}
    found = dict.fromkeys(instances, (0.0, 0))
    for pid in psutil.pids():
        stat = _stat(pid)
        if stat is None or stat.state in "ZX":
            continue
        name, leader = leaders.get(stat.session) or leaders.get(stat.group) or ("", None)
        if leader is None or stat.started < leader.started:
            name = next((marks[each] for each in _environment(pid) if each in marks), "")
        if name:
            seconds, octets = found[name]
            found[name] = (seconds + stat.ticks / ticks, octets + stat.pages * page)
    return found


def connections(port: int) -> int:
    """Return how many TCP connections to a port of this machine are established (proc_net_tcp(5))."""
    count = 0
    for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            lines = path.read_text().splitlines()[1:]
        except OSError:
            continue
        ending = f":{port:04X}"
        count += sum(
            fields[1].endswith(ending) and fields[3] == "01" for fields in (line.split() for line in lines)
        )
    return count


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    group: int
    session: int
    started: int
    ticks: int
    pages: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    if ")" not in text:
        return None
    # The second field is the program's name in parentheses, which may hold anything.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(
        state=fields[0],
        group=int(fields[2]),
        session=int(fields[3]),
        started=int(fields[19]),
        ticks=sum(int(field) for field in fields[11:15]),  # own and waited-for children's, user and system
        pages=int(fields[21]),
    )


def _leader_fits(process: Identity) -> bool:
    """Say whether the leader's pid is the leader's still, or nobody's."""
    found = _stat(process.pid)
    return found is None or found.started == process.started


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
