"""Writes reports of comparisons: for a terminal, for a pull request, for programs."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from apps.deployments.openapi.findings import Finding, Level, Report

_WORDS = {Level.ERROR: "error", Level.WARNING: "warning", Level.INFO: "info"}
_MARKS = {Level.ERROR: "✗", Level.WARNING: "!", Level.INFO: "·"}
_BADGES = {Level.ERROR: "**breaking**", Level.WARNING: "warning", Level.INFO: "info"}


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as plain values, in the fields that the published `GetOpenApiDiff` has."""
    return {
        "summary": {
            "diff": report.differs,
            "details": {
                "endpoints": asdict(report.endpoints),
                "paths": asdict(report.paths),
                "schemas": asdict(report.schemas),
            },
        },
        "hasBreakingChanges": bool(report.breaking),
        "changes": [
            {
                "id": found.id,
                "text": found.text,
                "level": int(found.level),
                "operation": found.method,
                "operationId": found.operation_id,
                "path": found.path,
                "pointer": found.pointer,
            }
            for found in report.findings
        ],
    }


def as_text(report: Report) -> str:
    """Return a report for a terminal: a line of totals, then each operation with its changes."""
    lines = [totals(report)]
    for heading, found in _groups(report):
        lines += ["", heading]
        lines += [f"  {_MARKS[each.level]} {_WORDS[each.level]:<8}{each.text}  [{each.id}]" for each in found]
    return "\n".join(lines) + "\n"


def as_markdown(report: Report) -> str:
    """Return a report as Markdown, for a pull request or a release note."""
    lines = ["# API changes", "", totals(report)]
    for heading, found in _groups(report):
        lines += ["", f"## {_plain(heading)}", ""]
        lines += [f"- {_BADGES[each.level]} {_plain(each.text)} (`{each.id}`)" for each in found]
    return "\n".join(lines) + "\n"


def totals(report: Report) -> str:
    """Return one sentence of numbers."""
    if not report.findings:
        return "No changes that clients could notice." if report.differs else "No changes."
    return (
        f"{_many(len(report.findings), 'change')}: {report.count(Level.ERROR)} breaking, "
        f"{_many(report.count(Level.WARNING), 'warning')}, {report.count(Level.INFO)} harmless."
    )


def _many(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _groups(report: Report) -> Iterator[tuple[str, list[Finding]]]:
    def place(found: Finding) -> tuple[str, str]:
        return (found.path, found.method)

    for (path, method), found in groupby(report.findings, key=place):
        yield (f"{method} {path}" if path else "The whole API"), list(found)


def _plain(text: str) -> str:
    """Escape what a stranger's document could format, outside of code marks."""
    parts = text.replace("\r", " ").replace("\n", " ").split("`")
    for place in range(0, len(parts), 2):
        for mark in "\\*_[]<>#|!":
            parts[place] = parts[place].replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return "`".join(parts)
