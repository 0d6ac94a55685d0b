"""The openapi policy: a request must be one that the deployment's own OpenAPI document describes.

What the document does not describe of an operation (further parameters, bodies of media types without a
schema) is not looked at. Reading and compiling is done in a thread, an operation at a time; a request
waits for it once.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec import Struct

from edge.sentinel.contract import Entry, Media, Plan, Unfit, Validator, unpack
from edge.sentinel.decision import Body, Call, Outcome, State, Unsupported
from edge.sentinel.match import field
from edge.sentinel.values import (
    ABSENT,
    Unreadable,
    cookie_pairs,
    form_value,
    from_header,
    from_pairs,
    from_path,
    measure,
    query_pairs,
    read_json,
)
from edge.store.records import Contract
from unkey.errors import Fault, InvalidConfiguration, OpenapiValidationFailed, Violation
from unkey.rpc.schema import location

DEFAULT_BODY_BYTES = 1024 * 1024
MOST_BODY_BYTES = 16 * 1024 * 1024
MOST_FAULTS = 20
_MOST_PLANS = 200
_MOST_PLANS_BYTES = 32 * 1024 * 1024

_threads = ThreadPoolExecutor(1, thread_name_prefix="openapi")


class Document(Struct, frozen=True):
    """What is known of a deployment's OpenAPI document.

    Args:
        plan: see `edge.sentinel.contract.pack`; empty: it has answered that it has none.
        fault: why requests cannot be checked; empty if they can.
    """

    plan: bytes
    fault: str = ""


def document_of(record: Contract | None) -> Document | None:
    """Return what the store knows of a deployment's document."""
    return None if record is None else Document(record.plan, record.fault)


class Plans:
    """Plans that were read, those that were used last; several deployments may share one."""

    def __init__(self) -> None:
        self._plans: OrderedDict[bytes, tuple[Plan, int]] = OrderedDict()
        self._bytes = 0

    def get(self, digest: bytes) -> Plan | None:
        """Return a plan by the digest of its packed form, if it is at hand."""
        found = self._plans.get(digest)
        if found is None:
            return None
        self._plans.move_to_end(digest)
        return found[0]

    def put(self, digest: bytes, plan: Plan, size: int) -> None:
        """Remember a plan; `size` is of its packed form."""
        if digest in self._plans:
            return
        self._plans[digest] = plan, size
        self._bytes += size
        while len(self._plans) > 1 and (len(self._plans) > _MOST_PLANS or self._bytes > _MOST_PLANS_BYTES):
            self._bytes -= self._plans.popitem(last=False)[1][1]


_plans = Plans()


class OpenApi:
    """A compiled openapi policy.

    Args:
        body: `maxBodyBytes`, the most that a body which is looked into may have.
        document: of the deployment; None: nothing is known of it.

    Raises:
        Unsupported: `maxBodyBytes` is no size.
    """

    def __init__(self, body: Mapping[str, Any], document: Document | None) -> None:
        limit = field(body, "maxBodyBytes")
        limit = DEFAULT_BODY_BYTES if limit is None else limit
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_BODY_BYTES:
            raise Unsupported(f"openapi maxBodyBytes is not a number of octets up to {MOST_BODY_BYTES}")
        self._limit = limit
        self._packed = document.plan if document is not None else b""
        self._fault = document.fault if document is not None else "it has not answered yet"
        self._digest = hashlib.blake2b(self._packed, digest_size=16).digest()

    def apply(self, call: Call, state: State) -> Outcome | Awaitable[Outcome]:
        """Check a request against its operation."""
        if self._fault:
            return _unusable(self._fault)
        if not self._packed:
            return None
        plan = _plans.get(self._digest)
        if plan is None:
            return self._later(self._open, call, state)
        state.secret = plan.secret
        found = plan.find(call.method, call.path)
        if found is None:
            return _refused([Violation("the document has no such path and method", "path")])
        entry, places = found
        operation = entry.operation
        if operation.fault:
            return _unusable(operation.fault)
        if entry.compiled is None:
            return self._later(lambda: entry.compile(plan), call, state)
        faults: list[Violation] = []
        if entry.compiled.parameters is not None:
            faults = _check_parameters(entry, entry.compiled.parameters, places, call)
        if not operation.media:
            return _refused(faults) if faults else None
        chosen = _choose(entry, call, faults)
        if chosen is None:
            return _refused(faults) if faults else None
        media, validator = chosen
        return Body(
            self._limit, lambda raw: _check_body(media, validator, raw, operation.body_required, faults)
        )

    def _open(self) -> None:
        _plans.put(self._digest, Plan(unpack(self._packed)), len(self._packed))

    async def _later(self, prepare: Callable[[], object], call: Call, state: State) -> Outcome:
        """Go on when what is missing was prepared in the thread."""
        try:
            await asyncio.get_running_loop().run_in_executor(_threads, prepare)
        except Unfit as error:
            return _unusable(str(error))
        outcome = self.apply(call, state)
        return outcome if outcome is None or isinstance(outcome, Fault | Body) else await outcome


def _unusable(why: str) -> Fault:
    return InvalidConfiguration(
        f"Requests cannot be checked against the app's OpenAPI document: {why}. Its owner has to mend it."
    )


def _refused(faults: list[Violation]) -> Fault:
    first = faults[0]
    return OpenapiValidationFailed(
        f"The request does not fit the app's OpenAPI document: {first.location}: {first.message}.",
        violations=tuple(faults[:MOST_FAULTS]),
    )


def _check_parameters(
    entry: Entry, validator: Validator, places: dict[str, str], call: Call
) -> list[Violation]:
    """Return what is wrong with path, query, headers and cookies."""
    faults: list[Violation] = []
    given: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}, "cookie": {}}
    query = cookies = None
    for parameter in entry.operation.parameters:
        place, name = parameter.place, parameter.name
        try:
            if place == "query":
                query = query_pairs(call.query) if query is None else query
                value = from_pairs(parameter, query)
            elif place == "header":
                value = from_header(parameter, call.headers(name.lower().encode("latin-1", "replace")))
            elif place == "cookie":
                cookies = cookie_pairs(call.headers(b"cookie")) if cookies is None else cookies
                value = from_pairs(parameter, cookies)
            else:
                value = from_path(parameter, places[name]) if name in places else ABSENT
        except Unreadable as error:
            faults.append(Violation(str(error), location([name], place)))
            continue
        if value is not ABSENT:
            given[place][name] = value
    unread = {each.location for each in faults}
    # Texts of a head are few, and what they stand for is flat, but for JSON.
    try:
        size = (8 + len(call.query) + len(call.path), 3) if entry.flat else measure(given)
    except Unreadable as error:
        return [*faults, Violation(str(error), "query")]
    for fault in _faults_of(validator, given, None, size):
        if fault.location not in unread:
            faults.append(fault)
    return faults


def _choose(entry: Entry, call: Call, faults: list[Violation]) -> tuple[Media, Validator | None] | None:
    """Return what the body has to be, if it has to be looked into; notes a body that may not be."""
    operation, compiled = entry.operation, entry.compiled
    if not call.length:
        if operation.body_required:
            faults.append(Violation("is required", "body"))
        return None
    said = (call.header(b"content-type") or b"").decode("latin-1")
    kind, _, rest = said.partition(";")
    kind = kind.strip(" \t").lower()
    chosen = None
    for pattern in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        for media, validator in zip(operation.media, compiled.media if compiled else (), strict=True):
            if chosen is None and media.types == pattern:
                chosen = media, validator
    if chosen is None:
        known = ", ".join(media.types for media in operation.media)
        faults.append(Violation(f"is not of a media type that is taken: {known}", "header.Content-Type"))
        return None
    if chosen[0].form == "opaque":
        return None
    if "charset" in rest.lower() and "utf-8" not in rest.lower():
        faults.append(Violation("names another charset than UTF-8", "header.Content-Type"))
        return None
    if (call.header(b"content-encoding") or b"identity").lower() != b"identity":
        faults.append(
            Violation("says that the body is compressed; send it as it is", "header.Content-Encoding")
        )
        return None
    return chosen


def _check_body(
    media: Media, validator: Validator | None, raw: bytes, required: bool, faults: list[Violation]
) -> Fault | None:
    faults = list(faults)
    if not raw:
        if required:
            faults.append(Violation("is required", "body"))
        return _refused(faults) if faults else None
    try:
        if media.form == "json":
            value = read_json(raw)
        elif media.form == "form":
            value = form_value(media.fields, raw)
        else:
            value = raw.decode()
        size = measure(value)
    except Unreadable as error:
        faults.append(Violation(str(error), "body"))
    except UnicodeDecodeError:
        faults.append(Violation("is not UTF-8", "body"))
    else:
        if validator is not None:
            faults.extend(_faults_of(validator, value, "body", size))
    return _refused(faults) if faults else None


def _faults_of(validator: Validator, value: Any, root: str | None, size: tuple[int, int]) -> list[Violation]:
    """Return the faults of a value; without `root` the first step of a location is the place."""
    found: list[Violation] = []
    try:
        for error in validator.faults(value, size):
            path = list(error.instance_path)
            here = root if root is not None else str(path.pop(0)) if path else "path"
            found.extend(_said(error.kind, path, here))
            if len(found) >= MOST_FAULTS:
                break
    except Unfit as error:
        return [Violation(str(error), root or "query")]
    return found


_TYPES = {
    "string": "a text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_LIMITS = {
    "minimum": "is less than {}",
    "maximum": "is more than {}",
    "exclusiveMinimum": "is not more than {}",
    "exclusiveMaximum": "is not less than {}",
    "multipleOf": "is not a multiple of {}",
    "minLength": "has fewer than {} characters",
    "maxLength": "has more than {} characters",
    "minItems": "has fewer than {} items",
    "maxItems": "has more than {} items",
    "minProperties": "has fewer than {} fields",
    "maxProperties": "has more than {} fields",
}
_PLAIN = {
    "additionalItems": "has more items than are known",
    "anyOf": "fits none of the schemas that it may have",
    "oneOfNotValid": "fits none of the schemas that it may have",
    "oneOfMultipleValid": "fits more than one of the schemas of which it has to fit one",
    "contains": "has no item that it has to have",
    "falseSchema": "must not be there",
    "not": "fits a schema that it must not fit",
    "pattern": "is not written as it has to be",
    "propertyNames": "has a field whose name is not written as it has to be",
    "unevaluatedItems": "has items that are not known",
    "uniqueItems": "has an item twice",
}


def _said(kind: Any, path: list[str | int], root: str) -> Iterable[Violation]:
    """Say a fault without repeating what was sent: it may be a secret."""
    name = kind.name
    here = location(path, root)
    if name == "required":
        return [Violation("is required", location([*path, str(kind.property)], root))]
    if name in ("additionalProperties", "unevaluatedProperties"):
        return [
            Violation("is not a field that is known", location([*path, each], root))
            for each in kind.unexpected
        ]
    if name == "type":
        return [Violation(f"is not {' or '.join(_TYPES.get(each, each) for each in kind.types)}", here)]
    if name == "enum":
        return [Violation(f"is not one of {_listed(kind.options)}", here)]
    if name == "const":
        return [Violation(f"is not {_listed([kind.value])}", here)]
    if name == "format":
        return [Violation(f"is no {kind.format}", here)]
    if name in _LIMITS:
        return [Violation(_LIMITS[name].format(kind.value), here)]
    return [Violation(_PLAIN.get(name, f"does not fit its schema ({name})"), here)]


def _listed(options: list[Any]) -> str:
    text = ", ".join(str(each)[:40] for each in options[:10])
    return f"{text}, …" if len(options) > 10 else text
