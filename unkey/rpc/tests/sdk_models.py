"""Reads answers of our operations by the published Python SDK's models; run in a process of its own.

The SDK installs itself as `unkey.py`, inside a package of the same name as this project's. Here that
name is bound to the SDK alone. Takes `[[operation, answer], …]` on standard input, prints faults.
"""

import importlib
import json
import sys
import sysconfig
import types
from pathlib import Path

package = types.ModuleType("unkey")
package.__path__ = [str(Path(sysconfig.get_paths()["purelib"]) / "unkey")]
sys.modules["unkey"] = package


def model_of(operation: str) -> type:
    """Return the model of an operation's whole answer, or of a refusal for `error.<status>`."""
    group, _, name = operation.partition(".")
    if group == "error":
        kind = {"400": "BadRequest", "401": "Unauthorized", "403": "Forbidden", "404": "NotFound"}
        kind |= {"409": "Conflict", "412": "PreconditionFailed", "429": "TooManyRequests"}
        wanted = f"{kind[name]}ErrorResponse"
        module = importlib.import_module(f"unkey.py.errors.{wanted.lower()}")
        return getattr(module, f"{wanted}Data")
    if (group, name) == ("portal", "rerollKey"):
        group = "keys"  # the SDK has one model for both
    wanted = f"v2{group}{name}responsebody".lower()
    module = importlib.import_module(f"unkey.py.models.{wanted}")
    return next(getattr(module, found) for found in dir(module) if found.lower() == wanted)


for operation, answer in json.load(sys.stdin):
    try:
        read = model_of(operation).model_validate_json(json.dumps(answer))  # type: ignore[attr-defined]
        # What the SDK does not know it drops: an answer must say nothing that gets lost.
        shown = json.loads(read.model_dump_json(by_alias=True, exclude_unset=True))
    except Exception as error:
        print(f"{operation}: {type(error).__name__}: {error}")
    else:
        if shown != answer:
            print(f"{operation}: {json.dumps(answer)} was read as {json.dumps(shown)}")
