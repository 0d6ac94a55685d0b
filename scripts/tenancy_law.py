"""Tenancy, checked on the source: no way around the workspace scope without a reason to read.

- `unscoped(…)` takes a literal, non-empty reason.
- `_base_manager` and `_default_manager`, which know no scope, are not used.
- A tenant model keeps `TenantManager` as `objects`.
- No `.raw(…)` and no `.extra(…)`, whose SQL the scope does not reach.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("apps", "unkey")
EXEMPT = {ROOT / "unkey" / "tenancy.py"}


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and complaint for each breach in a module."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="unscoped") | ast.Attribute(attr="unscoped")):
                reasons = [*node.args, *(keyword.value for keyword in node.keywords)]
                match reasons:
                    case [ast.Constant(value=str(reason))] if reason.strip():
                        pass
                    case [ast.JoinedStr()]:
                        pass
                    case _:
                        yield node.lineno, "unscoped() needs its reason written out"
            case ast.Attribute(attr="_base_manager" | "_default_manager"):
                yield node.lineno, f"{node.attr} knows no workspace scope"
            case ast.Call(func=ast.Attribute(attr="raw" | "extra", value=ast.Attribute(attr="objects"))):
                yield node.lineno, "SQL of one's own is not scoped to a workspace"
            case ast.ClassDef() if any(getattr(base, "id", "") == "Tenant" for base in node.bases):
                yield from _managers(node)


def _managers(model: ast.ClassDef) -> Iterator[tuple[int, str]]:
    for statement in model.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="objects")], value=ast.Call(func=ast.Name(id=manager))):
                if manager != "TenantManager":
                    yield statement.lineno, f"{model.name} replaces TenantManager"


def main() -> int:
    """Print every breach; return how many there are, at most 1."""
    found = 0
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if path in EXEMPT or {"tests", "migrations"} & set(path.parts):
                continue
            for line, complaint in faults(ast.parse(path.read_text())):
                print(f"{path.relative_to(ROOT)}:{line}: {complaint}")
                found += 1
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
