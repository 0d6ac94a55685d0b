"""Compares OpenAPI documents: which changes of an API break its clients. Pure: no network, no database.

    report = compare(parse(earlier), parse(later), today=date.today())
    report.breaking        # findings of level error, in a fixed order
    as_markdown(report)

Checks carry the ids under which users of the tool oasdiff know them.
"""

from apps.deployments.openapi.comparison import compare
from apps.deployments.openapi.documents import BadDocument, Document, pack, parse, unpack
from apps.deployments.openapi.findings import Finding, Level, Report
from apps.deployments.openapi.rendering import as_json, as_markdown, as_text

__all__ = [
    "BadDocument",
    "Document",
    "Finding",
    "Level",
    "Report",
    "as_json",
    "as_markdown",
    "as_text",
    "compare",
    "pack",
    "parse",
    "unpack",
]
