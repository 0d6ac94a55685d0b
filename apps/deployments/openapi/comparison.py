"""Compares two OpenAPI documents operation by operation."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from apps.deployments.openapi.documents import Document, operations
from apps.deployments.openapi.findings import Counts, Direction, Effect, Finding, Level, Report
from apps.deployments.openapi.schemas import Change, Comparison, Place, canonical, escape, short

MAX_FINDINGS = 5_000
_PARAMETER = re.compile(r"\{[^{}]*\}")
_IGNORED_HEADERS = frozenset({"accept", "content-type", "authorization"})
_TEXTUAL = frozenset({"query", "path", "header", "cookie"})


def compare(old: Document, new: Document, *, today: date) -> Report:
    """Say what changed between two documents, and what of it breaks clients of the earlier one.

    Args:
        old, new: as `parse` returned them.
        today: a removal is announced well if the operation's `x-sunset` has come by then.

    Raises:
        BadDocument: a reference leads nowhere, or schemas are too entangled to be compared.
    """
    found = set(_Documents(old, new, today).compare())
    ordered = sorted(found, key=lambda finding: finding.order)
    if len(ordered) > MAX_FINDINGS:
        ordered = sorted(ordered, key=lambda finding: (-finding.level, finding.order))[:MAX_FINDINGS]
        ordered.sort(key=lambda finding: finding.order)
    return Report(
        tuple(ordered),
        endpoints=_counts(_endpoints(old), _endpoints(new)),
        paths=_counts(_by_template(old.paths()), _by_template(new.paths())),
        schemas=_counts(old.component("schemas"), new.component("schemas")),
    )


@dataclass(frozen=True, slots=True)
class _Operation:
    """An operation of both documents.

    Args:
        method: upper case.
        path: the later document's template.
        old, new: the operations.
        old_item, new_item: their path items.
        old_pointer, new_pointer: JSON pointers of the operations.
    """

    method: str
    path: str
    old: dict[str, Any]
    new: dict[str, Any]
    old_item: dict[str, Any]
    new_item: dict[str, Any]
    old_path: str
    old_pointer: str
    new_pointer: str

    def finding(self, check: str, level: Level, text: str, pointer: str = "") -> Finding:
        """Make a finding of this operation."""
        said = self.new.get("operationId", self.old.get("operationId"))
        name = said if isinstance(said, str) else ""
        return Finding(check, level, text, self.method, self.path, name, pointer or self.new_pointer)


@dataclass(frozen=True, slots=True)
class _Parameter:
    raw: dict[str, Any]
    pointer: str
    kind: str
    name: str

    @property
    def required(self) -> bool:
        return self.kind == "path" or self.raw.get("required") is True

    @property
    def called(self) -> str:
        return f"{self.kind} parameter `{self.name}`"


class _Documents:
    def __init__(self, old: Document, new: Document, today: date) -> None:
        self.old, self.new, self.today = old, new, today
        self.schemas = Comparison(old, new)

    def compare(self) -> Iterator[Finding]:
        """Find everything."""
        yield from self._paths()
        yield from self._webhooks()
        yield from self._components()
        if canonical(self.old.root.get("security")) != canonical(self.new.root.get("security")):
            yield from _security(
                "api-global-security",
                self.old.root.get("security"),
                self.new.root.get("security"),
                lambda check, level, text: Finding(check, level, text, pointer="#/security"),
            )

    # ----- paths and operations

    def _paths(self) -> Iterator[Finding]:
        before, after = _by_template(self.old.paths()), _by_template(self.new.paths())
        for template, (path, item) in before.items():
            if template not in after:
                for method, operation in operations(item).items():
                    yield self._removed("api-path", method, path, operation)
        for template, (path, item) in after.items():
            here = operations(item)
            old_path, old_item = before.get(template, (path, {}))
            there = operations(old_item)
            for method, operation in there.items():
                if template in before and method not in here:
                    yield self._removed("api", method, old_path, operation)
            for method, operation in here.items():
                pointer = f"#/paths/{escape(path)}/{method.lower()}"
                if method not in there:
                    name = _text(operation.get("operationId"))
                    yield Finding("endpoint-added", Level.INFO, "was added", method, path, name, pointer)
                    continue
                yield from self._operation(
                    _Operation(
                        method,
                        path,
                        there[method],
                        operation,
                        old_item,
                        item,
                        old_path,
                        f"#/paths/{escape(old_path)}/{method.lower()}",
                        pointer,
                    )
                )

    def _removed(self, check: str, method: str, path: str, operation: dict[str, Any]) -> Finding:
        level, kind, text = Level.ERROR, "removed-without-deprecation", "was removed without deprecation"
        sunset = _text(operation.get("x-sunset"))
        if operation.get("deprecated") is True:
            level, kind, text = Level.INFO, "removed-with-deprecation", "was removed after its deprecation"
            if sunset:
                day = _day(sunset)
                if day is None:
                    level, kind = Level.ERROR, "sunset-parse"
                    text = f"was removed; its x-sunset {sunset[:40]!r} is not a date (YYYY-MM-DD)"
                elif self.today < day:
                    level, kind = Level.ERROR, "removed-before-sunset"
                    text = f"was removed before its sunset on {day.isoformat()}"
        pointer = f"#/paths/{escape(path)}/{method.lower()}"
        return Finding(
            f"{check}-{kind}", level, text, method, path, _text(operation.get("operationId")), pointer
        )

    def _operation(self, both: _Operation) -> Iterator[Finding]:
        yield from _lifecycle(both)
        yield from self._parameters(both)
        yield from self._request_body(both)
        yield from self._responses(both)
        if "security" in both.old or "security" in both.new:
            yield from _security(
                "api-security",
                both.old.get("security", self.old.root.get("security")),
                both.new.get("security", self.new.root.get("security")),
                lambda check, level, text: both.finding(check, level, text, f"{both.new_pointer}/security"),
            )

    # ----- parameters

    def _parameters(self, both: _Operation) -> Iterator[Finding]:
        before = _parameters(self.old, both.old_item, both.old, both.old_path, both.old_pointer)
        after = _parameters(self.new, both.new_item, both.new, both.path, both.new_pointer)
        for key, parameter in before.items():
            if key not in after:
                deprecated = parameter.raw.get("deprecated") is True
                yield both.finding(
                    "request-parameter-removed-with-deprecation"
                    if deprecated
                    else "request-parameter-removed",
                    Level.INFO if deprecated else Level.WARNING,
                    f"the {parameter.called} was removed",
                    parameter.pointer,
                )
        for key, parameter in after.items():
            if key not in before:
                yield _new_parameter(both, parameter)
            else:
                yield from self._parameter(both, before[key], parameter)

    def _parameter(self, both: _Operation, old: _Parameter, new: _Parameter) -> Iterator[Finding]:
        if new.required and not old.required:
            yield both.finding(
                "request-parameter-became-required",
                Level.ERROR,
                f"the {new.called} became required",
                new.pointer,
            )
        elif old.required and not new.required:
            yield both.finding(
                "request-parameter-became-optional",
                Level.INFO,
                f"the {new.called} became optional",
                new.pointer,
            )
        gone, here = old.raw.get("deprecated") is True, new.raw.get("deprecated") is True
        if gone != here:
            word = "deprecated" if here else "reactivated"
            says = "was deprecated" if here else "is no longer deprecated"
            yield both.finding(
                f"request-parameter-{word}", Level.INFO, f"the {new.called} {says}", new.pointer
            )
        if _serialisation(old) != _serialisation(new):
            yield both.finding(
                "request-parameter-serialization-changed",
                Level.ERROR,
                f"the {new.called} is written differently (style, explode)",
                new.pointer,
            )
        for media, left, left_at, right, right_at in self._contents(
            (old.raw, old.pointer), (new.raw, new.pointer)
        ):
            place = Place(Direction.REQUEST, "parameter", textual=not media and new.kind in _TEXTUAL)
            found = self.schemas.schemas(left, right, place, left_at, right_at)
            yield from self._tell(both, found, place, new.called)

    def _contents(
        self, old: tuple[dict[str, Any], str], new: tuple[dict[str, Any], str]
    ) -> Iterator[tuple[str, Any, str, Any, str]]:
        """Pair the schemas of a parameter or header: its own, or those of its media types."""
        (left, left_at), (right, right_at) = old, new
        if "schema" in left or "schema" in right:
            yield (
                "",
                left.get("schema", {}),
                f"{left_at}/schema",
                right.get("schema", {}),
                f"{right_at}/schema",
            )
            return
        before, after = _content(left), _content(right)
        for media in before:
            if media in after:
                (name, one), (other_name, other) = before[media], after[media]
                yield (
                    media,
                    one.get("schema", {}),
                    f"{left_at}/content/{escape(name)}/schema",
                    other.get("schema", {}),
                    f"{right_at}/content/{escape(other_name)}/schema",
                )

    # ----- bodies

    def _request_body(self, both: _Operation) -> Iterator[Finding]:
        old, old_at = self.old.follow(both.old.get("requestBody"), f"{both.old_pointer}/requestBody")
        new, new_at = self.new.follow(both.new.get("requestBody"), f"{both.new_pointer}/requestBody")
        if not old and not new:
            return
        if not old:
            required = new.get("required") is True
            kind = "required" if required else "optional"
            yield both.finding(
                f"request-body-added-{kind}",
                Level.ERROR if required else Level.INFO,
                f"a request body was added and is {kind}",
                new_at,
            )
            return
        if not new:
            yield both.finding("request-body-removed", Level.ERROR, "the request body was removed", old_at)
            return
        if new.get("required") is True and old.get("required") is not True:
            yield both.finding(
                "request-body-became-required", Level.ERROR, "the request body became required", new_at
            )
        elif old.get("required") is True and new.get("required") is not True:
            yield both.finding(
                "request-body-became-optional", Level.INFO, "the request body became optional", new_at
            )
        before, after = _content(old), _content(new)
        for media, (name, _) in before.items():
            if media not in after and not _ranged(media, after):
                yield both.finding(
                    "request-body-media-type-removed",
                    Level.ERROR,
                    f"the request body may no longer be {name}",
                    f"{old_at}/content/{escape(name)}",
                )
        for media, (name, content) in after.items():
            at = f"{new_at}/content/{escape(name)}"
            if media not in before:
                yield both.finding(
                    "request-body-media-type-added", Level.INFO, f"the request body may also be {name}", at
                )
                continue
            yield from self._body(both, Direction.REQUEST, before[media], (name, content), old_at, new_at, "")

    def _body(
        self,
        both: _Operation,
        direction: Direction,
        old: tuple[str, dict[str, Any]],
        new: tuple[str, dict[str, Any]],
        old_at: str,
        new_at: str,
        status: str,
    ) -> Iterator[Finding]:
        (old_name, before), (new_name, after) = old, new
        place = Place(direction, "body")
        left_at = f"{old_at}/content/{escape(old_name)}/schema"
        right_at = f"{new_at}/content/{escape(new_name)}/schema"
        of = f" of status {status}" if status else ""
        called = f"{direction.value} body{of}"
        if ("schema" in before) != ("schema" in after):
            word, effect = ("added", Effect.NARROWS) if "schema" in after else ("removed", Effect.WIDENS)
            yield both.finding(
                f"{direction.value}-body-media-type-schema-{word}",
                direction.level(effect),
                f"the schema of the {called} ({new_name}) was {word}",
                right_at if word == "added" else left_at,
            )
            return
        found = self.schemas.schemas(
            before.get("schema", {}), after.get("schema", {}), place, left_at, right_at
        )
        yield from self._tell(both, found, place, called)

    def _responses(self, both: _Operation) -> Iterator[Finding]:
        before, after = _statuses(both.old), _statuses(both.new)
        for status in before:
            if status not in after and f"{status[0]}XX" not in after:
                good = status[0] in "23"
                yield both.finding(
                    f"response-{'' if good else 'non-'}success-status-removed",
                    Level.ERROR if good else Level.INFO,
                    f"the response of status {status} was removed",
                    f"{both.old_pointer}/responses/{status}",
                )
        for status, response in after.items():
            # Where a range was described before, that is what clients expect of its members.
            known = status if status in before else f"{status[0]}XX"
            if known not in before:
                members = [each for each in before if each[0] == status[0] and each not in after]
                if status.upper().endswith("XX") and members:
                    known = members[0]
                else:
                    good = status[0] in "23"
                    yield both.finding(
                        f"response-{'' if good else 'non-'}success-status-added",
                        Level.INFO,
                        f"a response of status {status} was added",
                        f"{both.new_pointer}/responses/{status}",
                    )
                    continue
            old, old_at = self.old.follow(before[known], f"{both.old_pointer}/responses/{known}")
            new, new_at = self.new.follow(response, f"{both.new_pointer}/responses/{status}")
            yield from self._response(both, status, (old, old_at), (new, new_at))

    def _response(
        self, both: _Operation, status: str, old: tuple[dict[str, Any], str], new: tuple[dict[str, Any], str]
    ) -> Iterator[Finding]:
        (left, left_at), (right, right_at) = old, new
        before, after = _content(left), _content(right)
        for media, (name, _) in before.items():
            if media not in after:
                yield both.finding(
                    "response-media-type-removed",
                    Level.ERROR,
                    f"the response of status {status} is no longer {name}",
                    f"{left_at}/content/{escape(name)}",
                )
        for media, (name, content) in after.items():
            if media in before:
                yield from self._body(
                    both, Direction.RESPONSE, before[media], (name, content), left_at, right_at, status
                )
            else:
                yield both.finding(
                    "response-media-type-added",
                    Level.INFO,
                    f"the response of status {status} may also be {name}",
                    f"{right_at}/content/{escape(name)}",
                )
        yield from self._headers(both, status, old, new)

    def _headers(
        self, both: _Operation, status: str, old: tuple[dict[str, Any], str], new: tuple[dict[str, Any], str]
    ) -> Iterator[Finding]:
        before, after = _headers(*old), _headers(*new)
        for key, (name, said, at) in before.items():
            left, left_at = self.old.follow(said, at)
            required = left.get("required") is True
            called = f"response header `{name}` of status {status}"
            if key not in after:
                yield both.finding(
                    f"{'required' if required else 'optional'}-response-header-removed",
                    Level.ERROR if required else Level.WARNING,
                    f"the {called} was removed",
                    left_at,
                )
                continue
            _, said, at = after[key]
            right, right_at = self.new.follow(said, at)
            if required and right.get("required") is not True:
                yield both.finding(
                    "response-header-became-optional", Level.ERROR, f"the {called} became optional", right_at
                )
            for _, one, one_at, other, other_at in self._contents((left, left_at), (right, right_at)):
                place = Place(Direction.RESPONSE, "header")
                found = self.schemas.schemas(one, other, place, one_at, other_at)
                yield from self._tell(both, found, place, called)
        for key, (name, _, at) in after.items():
            if key not in before:
                yield both.finding(
                    "response-header-added",
                    Level.INFO,
                    f"the response header `{name}` of status {status} was added",
                    at,
                )

    def _tell(
        self, both: _Operation, changes: Iterable[Change], place: Place, called: str
    ) -> Iterator[Finding]:
        for change in changes:
            inner = any(not part.startswith("<") for part in change.path)
            where = Place(place.direction, place.role, inner)
            check = change.whole or f"{where.subject}-{change.check}"
            subject = f"the {called}"
            if change.path:
                written = "/".join(change.path)
                subject = f"the property `{written}` of {subject}" if inner else f"{subject} ({written})"
            yield both.finding(check, change.level, f"{subject} {change.says}", change.pointer)

    # ----- what belongs to no operation

    def _webhooks(self) -> Iterator[Finding]:
        before, after = self.old.webhooks(), self.new.webhooks()
        for name, item in before.items():
            for method in operations(item):
                if method not in operations(after.get(name, {})):
                    at = f"#/webhooks/{escape(name)}/{method.lower()}"
                    yield Finding(
                        "webhook-removed", Level.ERROR, "the webhook was removed", method, name, "", at
                    )
        for name, item in after.items():
            for method in operations(item):
                if method not in operations(before.get(name, {})):
                    at = f"#/webhooks/{escape(name)}/{method.lower()}"
                    yield Finding("webhook-added", Level.INFO, "the webhook was added", method, name, "", at)

    def _components(self) -> Iterator[Finding]:
        before, after = self.old.component("schemas"), self.new.component("schemas")
        for name in before:
            if name not in after:
                at = f"#/components/schemas/{escape(name)}"
                yield Finding("api-schema-removed", Level.INFO, f"the schema {name} was removed", pointer=at)
        before, after = self.old.component("securitySchemes"), self.new.component("securitySchemes")
        for name in before:
            at = f"#/components/securitySchemes/{escape(name)}"
            left, _ = self.old.follow(before[name], at)
            right, _ = self.new.follow(after.get(name), at)
            if name not in after:
                yield Finding(
                    "api-security-component-removed",
                    Level.INFO,
                    f"the security scheme {name} was removed",
                    pointer=at,
                )
                continue
            for keyword in ("type", "in", "name", "scheme"):
                if _lower(left.get(keyword)) != _lower(right.get(keyword)):
                    yield Finding(
                        "api-security-component-type-changed",
                        Level.ERROR,
                        f"the security scheme {name} has {keyword} {short(right.get(keyword))} "
                        f"instead of {short(left.get(keyword))}",
                        pointer=at,
                    )
        for name in after:
            if name not in before:
                at = f"#/components/securitySchemes/{escape(name)}"
                yield Finding(
                    "api-security-component-added",
                    Level.INFO,
                    f"the security scheme {name} was added",
                    pointer=at,
                )


# ----- operations in parts


def _lifecycle(both: _Operation) -> Iterator[Finding]:
    gone, here = both.old.get("deprecated") is True, both.new.get("deprecated") is True
    if here and not gone:
        sunset = _text(both.new.get("x-sunset"))
        if sunset and _day(sunset):
            yield both.finding(
                "endpoint-deprecated-with-sunset", Level.INFO, f"was deprecated, with its sunset on {sunset}"
            )
        elif sunset:
            yield both.finding(
                "api-deprecated-sunset-parse",
                Level.ERROR,
                f"was deprecated; its x-sunset {sunset[:40]!r} is not a date (YYYY-MM-DD)",
            )
        else:
            yield both.finding("endpoint-deprecated", Level.INFO, "was deprecated")
    elif gone and not here:
        yield both.finding("endpoint-reactivated", Level.INFO, "is no longer deprecated")
    before, after = _text(both.old.get("operationId")), _text(both.new.get("operationId"))
    if before and before != after:
        replaced = f" and replaced by {after}" if after else ""
        yield both.finding(
            "api-operation-id-removed", Level.INFO, f"the operation id {before} was removed{replaced}"
        )
    elif after and not before:
        yield both.finding("api-operation-id-added", Level.INFO, f"the operation id {after} was added")
    tags = [
        [tag for tag in each if isinstance(tag, str)] if isinstance(each, list) else []
        for each in (both.old.get("tags"), both.new.get("tags"))
    ]
    for tag in tags[0]:
        if tag not in tags[1]:
            yield both.finding("api-tag-removed", Level.INFO, f"the tag {tag} was removed")
    for tag in tags[1]:
        if tag not in tags[0]:
            yield both.finding("api-tag-added", Level.INFO, f"the tag {tag} was added")


def _new_parameter(both: _Operation, parameter: _Parameter) -> Finding:
    if parameter.kind == "path":
        check, level = "new-request-path-parameter", Level.ERROR
    elif parameter.required:
        check, level = "new-required-request-parameter", Level.ERROR
    else:
        check, level = "new-optional-request-parameter", Level.INFO
    kind = "required" if parameter.required else "optional"
    return both.finding(check, level, f"the {parameter.called} was added and is {kind}", parameter.pointer)


def _parameters(
    document: Document, item: dict[str, Any], operation: dict[str, Any], path: str, pointer: str
) -> dict[tuple[str, str], _Parameter]:
    """Return the parameters of an operation by what clients know them by.

    A path parameter goes by its place in the template: its name is never sent.
    """
    names = [part[1:-1] for part in _PARAMETER.findall(path)]
    found: dict[tuple[str, str], _Parameter] = {}
    shared = pointer.rsplit("/", 1)[0]
    for said, at in ((item.get("parameters"), shared), (operation.get("parameters"), pointer)):
        for place, each in enumerate(said if isinstance(said, list) else []):
            raw, where = document.follow(each, f"{at}/parameters/{place}")
            kind, name = _text(raw.get("in")), _text(raw.get("name"))
            if not kind or not name or (kind == "header" and name.lower() in _IGNORED_HEADERS):
                continue
            key = name.lower() if kind == "header" else name
            if kind == "path":
                if name not in names:
                    continue
                key = str(names.index(name))
            found[kind, key] = _Parameter(raw, where, kind, name)
    return found


def _serialisation(parameter: _Parameter) -> tuple[Any, Any]:
    style = parameter.raw.get("style", "form" if parameter.kind in {"query", "cookie"} else "simple")
    return style, parameter.raw.get("explode", style == "form")


def _security(prefix: str, old: Any, new: Any, make: Any) -> Iterator[Finding]:
    """Compare lists of alternatives: each one that was enough must still be enough."""
    before, after = _alternatives(old), _alternatives(new)
    is_open = [not each or {} in each for each in (before, after)]
    for wanted in before:
        name = _scheme(wanted)
        if wanted in after or not wanted:
            continue
        same = next((each for each in after if each.keys() == wanted.keys()), None)
        if same is not None:
            for scheme in wanted:
                for scope in sorted(same[scheme] - wanted[scheme]):
                    text = f"the scope {scope} of the security scheme {scheme} is needed from now on"
                    yield make(f"{prefix}-scope-added", Level.ERROR, text)
                for scope in sorted(wanted[scheme] - same[scheme]):
                    text = f"the scope {scope} of the security scheme {scheme} is no longer needed"
                    yield make(f"{prefix}-scope-removed", Level.INFO, text)
            continue
        enough = is_open[1] or any(
            all(scheme in wanted and scopes <= wanted[scheme] for scheme, scopes in each.items())
            for each in after
        )
        level = Level.INFO if enough else Level.ERROR
        yield make(f"{prefix}-removed", level, f"the security scheme {name} is no longer accepted")
    for offered in after:
        if offered and not any(each.keys() == offered.keys() for each in before):
            closed = is_open[0] and not is_open[1]
            text = f"the security scheme {_scheme(offered)} is {'required' if closed else 'accepted'} from now on"
            yield make(f"{prefix}-added", Level.ERROR if closed else Level.INFO, text)
    if (
        {} in before
        and not is_open[1]
        and all(any(each.keys() == offered.keys() for each in before) for offered in after)
    ):
        yield make(f"{prefix}-removed", Level.ERROR, "requests without credentials are no longer accepted")


def _alternatives(said: Any) -> list[dict[str, frozenset[str]]]:
    found: list[dict[str, frozenset[str]]] = []
    for each in said if isinstance(said, list) else []:
        if isinstance(each, dict):
            found.append(
                {
                    name: frozenset(scope for scope in scopes if isinstance(scope, str))
                    if isinstance(scopes, list)
                    else frozenset()
                    for name, scopes in each.items()
                }
            )
    return found


def _scheme(wanted: Mapping[str, Any]) -> str:
    return " with ".join(sorted(wanted))


def _by_template(paths: dict[str, dict[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return path items by their template without the parameters' names: renaming one breaks nobody."""
    return {_PARAMETER.sub("{}", path): (path, item) for path, item in paths.items()}


def _statuses(operation: dict[str, Any]) -> dict[str, Any]:
    said = operation.get("responses")
    found = said if isinstance(said, dict) else {}
    return {
        status.upper() if status != "default" else status: response
        for status, response in found.items()
        if status and not status.startswith("x-")
    }


def _content(said: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return media types by name without parameters (`charset`) and case."""
    found = said.get("content")
    if not isinstance(found, dict):
        return {}
    return {
        name.partition(";")[0].strip().lower(): (name, content)
        for name, content in found.items()
        if isinstance(content, dict)
    }


def _ranged(media: str, offered: Mapping[str, Any]) -> bool:
    return "*/*" in offered or f"{media.partition('/')[0]}/*" in offered


def _headers(response: dict[str, Any], pointer: str) -> dict[str, tuple[str, Any, str]]:
    said = response.get("headers")
    found = said if isinstance(said, dict) else {}
    return {
        name.lower(): (name, header, f"{pointer}/headers/{escape(name)}")
        for name, header in found.items()
        if name.lower() != "content-type"
    }


def _endpoints(document: Document) -> dict[str, Any]:
    return {
        f"{method} {_PARAMETER.sub('{}', path)}": operation
        for path, item in document.paths().items()
        for method, operation in operations(item).items()
    }


def _counts(old: Mapping[str, Any], new: Mapping[str, Any]) -> Counts:
    modified = sum(canonical(old[name]) != canonical(new[name]) for name in old if name in new)
    return Counts(sum(name not in old for name in new), sum(name not in new for name in old), modified)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        return None
