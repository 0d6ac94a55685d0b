"""URN grants: whether what a principal holds covers what an operation needs, or what it would give away."""

from collections.abc import Iterable


def grants(held: Iterable[str], wanted: str) -> bool:
    """Say whether any held permission covers a URN `unkey:v1:<workspace>:<path>#<action>`.

    `*` in a grant stands for exactly one segment, a trailing `**` for this node's descendants, an
    action `*` for any action and only behind a `**` path. A `*` in what is wanted ("any key of the
    key space") is covered only by `*` or `**` at that place. Malformed grants never match.
    """
    scope, _, path_action = wanted.rpartition(":")
    path, _, action = path_action.partition("#")
    segments = path.split("/")
    return any(_covers(text, scope, segments, action) for text in held if text.startswith("unkey:v1:"))


def gives(held: Iterable[str], wanted: str) -> bool:
    """Say whether who holds some permissions may give another one away: it opens nothing that they do not.

    A tuple is given by itself or by the tuple of any id. A grant is given by one that is at least as wide:
    `*` gives a segment or `*`, and only a `**` at or above its place gives `**`; only `*` gives the action
    `*`. Several grants are not added up.
    """
    held = list(held)
    if not wanted.startswith("unkey:"):
        kind, _, rest = wanted.partition(".")
        action = rest.rpartition(".")[2]
        return wanted in held or f"{kind}.*.{action}" in held
    scope, _, path_action = wanted.rpartition(":")
    path, _, action = path_action.partition("#")
    segments = path.split("/")
    if segments[-1] != "**":
        return grants(held, wanted)
    head = segments[:-1]
    return any(_covers_below(text, scope, head, action) for text in held if text.startswith("unkey:v1:"))


def _covers_below(text: str, scope: str, wanted: list[str], action: str) -> bool:
    """Say whether a grant covers an action on everything below a path."""
    granted_scope, _, path_action = text.rpartition(":")
    path, _, granted_action = path_action.partition("#")
    segments = path.split("/")
    if granted_scope != scope or segments[-1] != "**" or "" in segments or "**" in segments[:-1]:
        return False
    head = segments[:-1]
    return (
        granted_action in ("*", action)
        and len(wanted) >= len(head)
        and all(_segment(a, b) for a, b in zip(head, wanted, strict=False))
    )


def _covers(text: str, scope: str, wanted: list[str], action: str) -> bool:
    granted_scope, colon, path_action = text.rpartition(":")
    path, hash_, granted_action = path_action.partition("#")
    if not colon or not hash_ or granted_scope != scope or not path or not granted_action:
        return False
    segments = path.split("/")
    if "" in segments or "**" in segments[:-1]:
        return False
    deep = segments[-1] == "**"
    if granted_action != action and not (granted_action == "*" and deep):
        return False
    if deep:
        head = segments[:-1]
        return len(wanted) > len(head) and all(_segment(a, b) for a, b in zip(head, wanted, strict=False))
    return len(segments) == len(wanted) and all(_segment(a, b) for a, b in zip(segments, wanted, strict=True))


def _segment(granted: str, wanted: str) -> bool:
    return granted in ("*", wanted)
