"""Error answers of the edge: an HTML page or JSON, by the request's `Accept`."""

import html
from collections.abc import Sequence
from typing import Any

import msgspec

from unkey.errors import Kind, Violation

_ADVICE_VISITOR = "Nothing is wrong with your browser. Try again in a moment; if it stays, tell the owner."
_ADVICE_OWNER = "The code above says what happened, and the request id finds it in the logs."

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{status} {title}</title><style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:12vh auto;padding:0 1rem;color:#222}}
h1{{font-size:1.6rem}}code{{background:#f2f2f2;padding:.1rem .3rem;border-radius:.2rem}}
@media(prefers-color-scheme:dark){{body{{background:#111;color:#ddd}}code{{background:#222}}a{{color:#8bf}}}}
</style></head><body><h1>{status} {title}</h1><p>{message}</p>{faults}
<p>If you are a visitor: {visitor}</p><p>If this is your app: {owner} <a href="{url}">What it means</a></p>
<p><code>{code}</code> <code>{request_id}</code></p></body></html>
"""


def wants_json(accept: bytes) -> bool:
    """Say whether JSON is asked for: named, or anything but not HTML; nothing said means JSON."""
    if not accept:
        return True
    text = accept.lower()
    if b"application/json" in text or b"application/*" in text:
        return True
    return b"*/*" in text and b"text/html" not in text


def render(
    kind: Kind, message: str, request_id: str, accept: bytes, violations: Sequence[Violation] = ()
) -> tuple[bytes, bytes]:
    """Return (content type, body) for an entry of the error catalogue.

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
        return b"application/json", msgspec.json.encode({"meta": {"requestId": request_id}, "error": error})
    page = _PAGE.format(
        status=kind.status,
        title=html.escape(kind.title),
        message=html.escape(message),
        faults=_faults(violations),
        visitor=_ADVICE_VISITOR,
        owner=_ADVICE_OWNER,
        url=html.escape(kind.url),
        code=html.escape(kind.code),
        request_id=html.escape(request_id),
    )
    return b"text/html; charset=utf-8", page.encode()


def _faults(violations: Sequence[Violation]) -> str:
    if not violations:
        return ""
    lines = (
        f"<li><code>{html.escape(each.location)}</code> {html.escape(each.message)}</li>"
        for each in violations
    )
    return f"<ul>{''.join(lines)}</ul>"
