"""Fetches the OpenAPI document that a running program serves, and reads it. Network, no database."""

import asyncio
import hashlib
import re
from dataclasses import dataclass

import httpx

from apps.deployments import openapi

DEFAULT_PATH = "/openapi.yaml"
MAX_BYTES = 10 * 1024 * 1024
SILENCE_SECONDS = 2.0
TOTAL_SECONDS = 5.0
FAULT_MAX = 512
# What says that there is no document, and will say so again; everything else may be a bad moment.
_NONE = frozenset({404, 405, 410})
# A single-page app answers every path with its HTML: only what declares its version is a document.
_DECLARES = re.compile(r"""(^|[{,\s])["']?(openapi|swagger)["']?\s*:\s*["']?\d""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    """An OpenAPI document as it was served.

    Args:
        path: where.
        text: YAML or JSON.
        digest: SHA-256 of the text in UTF-8, hexadecimal.
        packed: the document as it was understood; None if it cannot be compared.
        fault: why it cannot be; empty if it can.
        contract: what edges check requests against, and why they cannot; None: nobody asked for it.
    """

    path: str
    text: str
    digest: str
    packed: bytes | None
    fault: str
    contract: tuple[bytes, str] | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """The program answered that it has no document."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing says whether there is a document: no answer, or none that can be one.

    Args:
        why: the rest of a sentence that begins with "it".
    """

    why: str


Found = Document | Absent | Unknown


class _Unusable(Exception):
    """What was answered cannot be a document; the message is the `why` of `Unknown`."""


def fetch(address: str, path: str | None) -> Found:
    """Ask one instance for its OpenAPI document.

    Args:
        address: `host:port` of a running instance.
        path: as the environment's settings name it, or None to try `/openapi.yaml`.
    """
    wanted = path or DEFAULT_PATH
    if not wanted.startswith("/") or wanted.startswith("//"):
        return Unknown(f"cannot be asked at {wanted[:64]!r}: openapiSpecPath has to begin with one slash")
    try:
        # A loop of its own in this thread: its deadline ends the connection, wherever the exchange is.
        content = asyncio.run(_exchange(f"http://{address}{wanted}"))
        text = content.decode() if content is not None else None
    except httpx.TimeoutException:
        return Unknown(f"did not answer {wanted} in time")
    except TimeoutError:
        return Unknown(f"did not complete its answer to {wanted} within {TOTAL_SECONDS:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Unknown(f"did not answer {wanted}: {str(error) or type(error).__name__}"[:FAULT_MAX])
    except UnicodeDecodeError:
        return Unknown(f"answered {wanted} with something that is not UTF-8")
    except _Unusable as unusable:
        return Unknown(f"answered {wanted} with {unusable}")
    if text is None:
        return Absent()
    if not _DECLARES.search(text[:65536]):
        # Some programs answer every path with their page. Only who named a path has promised a document.
        return Unknown(f"answered {wanted} with something that is no OpenAPI document") if path else Absent()
    packed, fault = None, ""
    try:
        packed = openapi.pack(openapi.parse(text))
    except openapi.BadDocument as bad:
        fault = str(bad)[:FAULT_MAX]
    return Document(wanted, text, hashlib.sha256(text.encode()).hexdigest(), packed, fault)


def fetch_any(addresses: list[str], path: str | None) -> Found:
    """Ask instances of one deployment in turn: a document counts more than "none", that more than silence."""
    found: Found = Unknown("has no running instance that could be asked")
    for address in addresses:
        answer = fetch(address, path)
        if isinstance(answer, Document):
            return answer
        if not isinstance(found, Absent):
            found = answer
    return found


async def _exchange(url: str) -> bytes | None:
    """Return a document, or None if there is none.

    The header is bounded by the HTTP library, at 100 KiB.

    Raises:
        TimeoutError: connecting, header and body together took more than TOTAL_SECONDS.
    """
    async with asyncio.timeout(TOTAL_SECONDS):
        # No redirects: a program must not make the control plane fetch something elsewhere.
        # Instances speak plain HTTP, so no certificates are loaded for them.
        async with httpx.AsyncClient(
            timeout=SILENCE_SECONDS,
            follow_redirects=False,
            trust_env=False,
            verify=False,  # noqa: S501
        ) as client:
            return await _read(client, url)


async def _read(client: httpx.AsyncClient, url: str) -> bytes | None:
    content = bytearray()
    # Nothing compressed: a small answer must not become a large document while it is read.
    headers = {"Accept": "application/yaml, application/json", "Accept-Encoding": "identity"}
    async with client.stream("GET", url, headers=headers) as answer:
        if answer.status_code in _NONE:
            return None
        if answer.status_code != 200:
            raise _Unusable(f"status {answer.status_code}")
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Unusable("a compressed document, although it was asked for a plain one")
        async for chunk in answer.aiter_raw():
            content += chunk
            if len(content) > MAX_BYTES:
                raise _Unusable(f"more than {MAX_BYTES} octets")
    return bytes(content)
