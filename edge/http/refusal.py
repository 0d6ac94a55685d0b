"""Error answers of the edge: an HTML page or JSON, by the request's `Accept`."""

import html
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from edge.http import advice
from unkey.errors import Kind, Violation

_HEADERS = (
    b"cache-control: no-store\r\nvary: accept\r\nx-content-type-options: nosniff\r\n"
    b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n"
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><title>{status} {title}</title><style>
:root{{color-scheme:light dark;--ink:#1c1e21;--soft:#5b6169;--line:#dfe2e6;--back:#fafbfc;--link:#0b57d0}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e8eaed;--soft:#9aa2ab;--line:#33373d;--back:#15171a;--link:#8ab4f8}}}}
*{{box-sizing:border-box}}
body{{margin:0;min-height:100vh;display:grid;place-items:center;padding:2rem 1.25rem;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);background:var(--back)}}
main{{width:100%;max-width:38rem}}
.status{{margin:0;font-size:.95rem;color:var(--soft)}}
h1{{margin:.1rem 0 .75rem;font-size:1.75rem;line-height:1.2}}
h2{{margin:0 0 .25rem;font-size:1rem}}
p{{margin:0;overflow-wrap:anywhere}}
section{{margin-top:1.25rem;padding-top:1.25rem;border-top:1px solid var(--line)}}
section p{{color:var(--soft)}}
ul{{padding-left:1.2rem}}
dl{{margin:1.5rem 0 0;padding-top:1.25rem;border-top:1px solid var(--line);display:grid;
grid-template-columns:max-content 1fr;gap:.25rem 1rem;font-size:.875rem}}
dt{{color:var(--soft)}}dd{{margin:0;overflow-wrap:anywhere}}
code{{font:.875em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}}
a{{color:var(--link)}}
</style></head><body><main>
<p class="status">Error {status}</p><h1>{title}</h1><p>{message}</p>{faults}
<section><h2>If you are visiting</h2><p>{visitor}</p></section>
<section><h2>If this is your app</h2><p>{owner} <a href="{url}">What this code means</a></p></section>
<dl><dt>Code</dt><dd><code>{code}</code></dd><dt>Request</dt><dd><code>{request_id}</code></dd></dl>
</main></body></html>
"""
_RANGE = re.compile(rb"\s*([a-z*]+/[a-z0-9.+*-]+)\s*(?:;.*?(?<![a-z0-9])q=([0-9.]{1,5}))?.*", re.DOTALL)
_OF_HTML = {b"text/html": 3, b"text/*": 2, b"*/*": 1}
_OF_JSON = {b"application/json": 3, b"application/*": 2, b"*/*": 1}


def wants_json(accept: bytes) -> bool:
    """Say whether JSON is asked for rather than HTML (RFC 9110, 12.5.1); whoever does not care gets JSON.

    Args:
        accept: the header's value, empty if there is none.
    """
    page, program = (0, 0.0), (0, 0.0)
    for part in accept.lower().split(b","):
        match = _RANGE.fullmatch(part)
        if match is None:
            continue
        kind = match[1]
        # The most specific range of a type says how much it is liked.
        page = max(page, (_OF_HTML.get(kind, 0), _liking(match[2])))
        program = max(program, (_OF_JSON.get(kind, 0), _liking(match[2])))
    liked_page = page[1] if page[0] else 0.0
    liked_program = program[1] if program[0] else 0.0
    if liked_page == liked_program:
        return page[0] <= program[0]
    return liked_program > liked_page


def _liking(quality: bytes | None) -> float:
    try:
        return 1.0 if quality is None else min(float(quality), 1.0)
    except ValueError:
        return 0.0


def render(
    kind: Kind, message: str, request_id: str, accept: bytes, violations: Sequence[Violation] = ()
) -> tuple[bytes, bytes]:
    """Return (headers, body) for an entry of the error catalogue; headers as lines, each with its CRLF.

    Args:
        kind: the entry.
        message: what is wrong.
        request_id: told for the logs.
        accept: of the request.
        violations: faults of the request, each with its location.
    """
    if wants_json(accept):
        error: dict[str, Any] = {"code": kind.code, "message": message}
        if violations:
            error["errors"] = [{"location": each.location, "message": each.message} for each in violations]
        return b"content-type: application/json\r\n", msgspec.json.encode(
            {"meta": {"requestId": request_id}, "error": error}
        )
    page = _PAGE.format(
        status=kind.status,
        title=html.escape(kind.title),
        message=html.escape(message),
        faults=_faults(violations),
        visitor=html.escape(advice.for_visitor(kind)),
        owner=html.escape(advice.for_owner(kind)),
        url=html.escape(kind.url),
        code=html.escape(kind.code),
        request_id=html.escape(request_id),
    )
    return b"content-type: text/html; charset=utf-8\r\n" + _HEADERS, page.encode()


def _faults(violations: Sequence[Violation]) -> str:
    if not violations:
        return ""
    lines = (
        f"<li><code>{html.escape(each.location)}</code> {html.escape(each.message)}</li>"
        for each in violations
    )
    return f"<ul>{''.join(lines)}</ul>"
