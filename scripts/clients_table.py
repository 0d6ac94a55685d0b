"""Writes docs/clients.md: every operation of the published clients against ours.

With `--check` it says whether the page is current.
"""

import os
import re
import sys
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")

CLIENT = "unkey.py"
_PATH = re.compile(r'path="/v2/([A-Za-z]+\.[A-Za-z]+)"')
_HEAD = """# Operations of the published clients

Written by `scripts/clients_table.py`; `make check` says when it is not current. The list is that of
`{client}` {version} from PyPI, the newest statement of the contract. {works} of {all} operations work. The
others answer 412 `{code}` with what to do instead.

| operation | state |
|---|---|
"""


def published() -> list[str]:
    """Return the operations that the published Python client calls, sorted."""
    package = distribution(CLIENT)
    sources = [file for file in package.files or () if file.suffix == ".py"]
    found = {name for file in sources for name in _PATH.findall(Path(str(file.locate())).read_text())}
    return sorted(found)


def page() -> str:
    """Return the page as Markdown."""
    import django

    django.setup()
    from unkey.errors import OperationUnavailable
    from unkey.rpc.routes import routes
    from unkey.rpc.unavailable import WAITING

    names = published()
    head = _HEAD.format(
        client=CLIENT,
        version=distribution(CLIENT).version,
        works=sum(name in routes() for name in names),
        all=len(names),
        code=OperationUnavailable.kind.code,
    )
    rows = [f"| `{name}` | {'works' if name in routes() else WAITING[name]} |\n" for name in names]
    ours = [f"| `{name}` | {route.summary} |\n" for name, route in routes().items() if name not in names]
    return (
        head
        + "".join(rows)
        + "\n## Beyond the published clients\n\n| operation | |\n|---|---|\n"
        + "".join(ours)
    )


def main() -> int:
    """Write or check; return 1 when the check fails."""
    target = ROOT / "docs" / "clients.md"
    wanted = page()
    if "--check" in sys.argv:
        if not target.exists() or target.read_text() != wanted:
            print("docs/clients.md is not current: python scripts/clients_table.py")
            return 1
        return 0
    target.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
