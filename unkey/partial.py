"""Three-state values of partial updates: absent, null and a value are different things."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, Literal


class Unset(Enum):
    """The type of UNSET."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final[Literal[Unset.UNSET]] = Unset.UNSET
"""A field that the caller did not mention, and that therefore stays as it is."""


def present(body: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Return the fields that a body mentions, renamed for a service.

    Args:
        body: the request.
        names: service argument to field: `present(body, external_id="externalId")`.
    """
    return {argument: body[field] for argument, field in names.items() if field in body}
