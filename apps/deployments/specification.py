"""Fetches the OpenAPI document that a running program serves, and reads it. Network, no database."""

import hashlib
import re
import time
from dataclasses import dataclass

import httpx

from apps.deployments import openapi

DEFAULT_PATH = "/openapi.yaml"
MAX_BYTES = 10 * 1024 * 1024
TOTAL_SECONDS = 5.0
FAULT_MAX = 512
_TIMEOUT = httpx.Timeout(2.0, connect=0.5)
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
    """

    path: str
    text: str
    digest: str
    packed: bytes | None
    fault: str


def fetch(address: str, path: str | None) -> Document | None:
    """Ask one instance for its OpenAPI document; None if it has none that can be used.

    Args:
        address: `host:port` of a running instance.
        path: as the environment's settings name it, or None to try `/openapi.yaml`.
    """
    path = path or DEFAULT_PATH
    if not path.startswith("/") or path.startswith("//"):
        return None
    try:
        # No redirects: a program must not make the control plane fetch something elsewhere.
        # Instances speak plain HTTP, so no certificates are loaded for them.
        with httpx.Client(
            timeout=_TIMEOUT,
            follow_redirects=False,
            trust_env=False,
            verify=False,  # noqa: S501
        ) as client:
            content = _read(client, f"http://{address}{path}")
        text = content.decode() if content is not None else ""
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeDecodeError):
        return None
    if not _DECLARES.search(text[:65536]):
        return None
    packed, fault = None, ""
    try:
        packed = openapi.pack(openapi.parse(text))
    except openapi.BadDocument as bad:
        fault = str(bad)[:FAULT_MAX]
    return Document(path, text, hashlib.sha256(text.encode()).hexdigest(), packed, fault)


def _read(client: httpx.Client, url: str) -> bytes | None:
    deadline = time.monotonic() + TOTAL_SECONDS
    content = bytearray()
    # Nothing compressed: a small answer must not become a large document while it is read.
    headers = {"Accept": "application/yaml, application/json", "Accept-Encoding": "identity"}
    with client.stream("GET", url, headers=headers) as answer:
        encoding = answer.headers.get("Content-Encoding", "identity")
        if answer.status_code != 200 or encoding.lower() != "identity":
            return None
        for chunk in answer.iter_raw():
            content += chunk
            if len(content) > MAX_BYTES or time.monotonic() > deadline:
                return None
    return bytes(content)
