"""Writes the table of differences from nginx and haproxy into docs/http.md."""

from itertools import groupby
from pathlib import Path

from edge.http.tests.corpus import CASES, Case

PAGE = Path(__file__).resolve().parents[4] / "docs" / "http.md"
START, END = (
    "<!-- differences: written by python -m edge.http.tests.corpus -->",
    "<!-- end of differences -->",
)


def table() -> str:
    """Return the differences as a Markdown table, requests of one reason in one row."""
    lines = ["| requests | edge | nginx | haproxy | why the edge does so |", "|---|---|---|---|---|"]
    differing = sorted((case for case in CASES.values() if case.others), key=_kind)
    for kind, cases in groupby(differing, _kind):
        why, edge, nginx, haproxy = kind
        names = "; ".join(case.name for case in cases)
        lines.append(f"| {names} | {edge} | {nginx or edge} | {haproxy or edge} | {why} |")
    return "\n".join(lines)


def _kind(case: Case) -> tuple[str, str, str, str]:
    edge = "forwards" if len(case.seen) > 0 else "refuses"
    return case.why, edge, case.others.get("nginx", ""), case.others.get("haproxy", "")


def page(text: str) -> str:
    """Return the page's text with the table as it must be."""
    before, rest = text.split(START)
    return f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
