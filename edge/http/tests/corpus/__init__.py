"""The corpus: requests that a gateway must not misread, and what the edge does with each."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NEXT = "GET /next 0"
OTHERS = ("nginx", "haproxy")
_NEXT_BYTES = b"GET /next HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
_REPEATED = re.compile(r"\{([^{}]*)\*(\d+)\}")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@dataclass(frozen=True, slots=True)
class Case:
    """One entry of `requests.toml`, which explains its fields.

    Args:
        shown: the bytes as they are written there.
        seen: what reaches the upstream, the request for /next included.
        others: what nginx and haproxy do, where that differs: `forwards` what the edge refuses, `refuses` what the
            edge forwards, or forwards it `otherwise`.
    """

    group: str
    name: str
    shown: str
    answers: tuple[int, ...]
    seen: tuple[str, ...]
    others: dict[str, str]
    why: str

    @property
    def send(self) -> bytes:
        """The bytes of the case, and a sound request after them."""
        text = _REPEATED.sub(lambda match: match[1] * int(match[2]), self.shown)
        return text.encode("latin-1") + _NEXT_BYTES


def _cases() -> dict[str, Case]:
    table = tomllib.loads(Path(__file__).with_name("requests.toml").read_text())
    cases: dict[str, Case] = {}
    for row in table["request"]:
        forwards = tuple(row.get("forwards", ()))
        closes = row.get("closes", not forwards)
        cases[row["name"]] = Case(
            row["group"],
            row["name"],
            row["send"],
            (*row["answers"], *(() if closes else (200,))),
            forwards if closes else (*forwards, NEXT),
            {name: row[name] for name in OTHERS if name in row},
            row.get("why", ""),
        )
    assert len(cases) == len(table["request"]), "two cases have one name"
    return cases


CASES = _cases()


def difference(case: Case, seen: Sequence[str], *, garbled: bool) -> str:
    """Say how another proxy differs from the edge; empty: it does not.

    Args:
        seen: what reached the upstream behind it.
        garbled: something reached it that is not HTTP.
    """
    ours = [each for each in case.seen if each != NEXT]
    theirs = [each for each in seen if each != NEXT]
    if not ours:
        return "forwards" if theirs or garbled else ""
    if not theirs:
        return "refuses"
    return "" if theirs == ours and not garbled else "otherwise"


def statuses(text: bytes) -> tuple[int, ...]:
    """Return the status of each answer in what a server sent; no body has what looks like one."""
    return tuple(int(match[1]) for match in _STATUS.finditer(text))
