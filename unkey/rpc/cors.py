"""Cross-origin requests to `/v2` (the CORS protocol of https://fetch.spec.whatwg.org/#http-cors-protocol).

Root keys are sent by the program that holds them, never by the browser itself, so any origin may ask
unless CORS_ORIGINS says otherwise. Cookies are never let through.
"""

from collections.abc import Mapping

from unkey.env import env

_ALLOWED_HEADERS = (
    "Authorization, Content-Type, Accept, X-Unkey-Client, X-Unkey-Digest, X-Unkey-Metrics, Unkey-Sdk"
)
_TOLD_HEADERS = "RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, X-Request-Id"
_DAY = "86400"


def answered(origin: str) -> dict[str, str]:
    """Return the headers that let a page of an origin read an answer; none: it may not, or is no page."""
    if not origin:
        return {}
    allowed: tuple[str, ...] = env.CORS_ORIGINS
    if "*" in allowed:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _TOLD_HEADERS}
    if origin not in allowed:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _TOLD_HEADERS,
        "Vary": "Origin",
    }


def preflight(method: str, headers: Mapping[str, str]) -> dict[str, str] | None:
    """Return the headers of the answer to a preflight request; None: it is not one."""
    if method != "OPTIONS" or not headers.get("Access-Control-Request-Method"):
        return None
    allowed = answered(headers.get("Origin", ""))
    if not allowed:
        return {"Vary": "Origin"}
    return allowed | {
        "Access-Control-Allow-Methods": "POST, GET",
        "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
        "Access-Control-Max-Age": _DAY,
    }
