"""Writes the table of settings into the README, or with `--check` says whether it is current."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from unkey.env import SETTINGS  # noqa: E402

START, END = "<!-- settings: written by scripts/readme_settings.py -->", "<!-- end of settings -->"


def table() -> str:
    """Return the settings as a Markdown table."""
    lines = ["| setting | type | default | what for |", "|---|---|---|---|"]
    for setting in SETTINGS:
        default = setting.default.replace(str(ROOT), ".")
        cells = (
            f"`{setting.name}`",
            setting.kind.replace("|", " or "),
            f"`{default}`" if default else "",
            setting.help.replace("|", "\\|"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Write or check; return 1 when the check fails."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    current = f"{before}{START}\n{table()}\n{END}{after}"
    if "--check" in sys.argv:
        if text != current:
            print("README.md: the table of settings is not current: python scripts/readme_settings.py")
            return 1
        return 0
    readme.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main())
