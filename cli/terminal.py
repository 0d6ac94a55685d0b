"""What the CLI shows: plain lines in a pipe, colours and a live line on a terminal, JSON when asked."""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}


class Terminal:
    """Writes for people on standard output, or one JSON document for programs.

    Args:
        as_json: print nothing but the final document.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.live = sys.stdout.isatty() and not as_json and os.environ.get("TERM") != "dumb"
        self._colour = self.live and "NO_COLOR" not in os.environ
        self._pending = ""
        self._last_error = ""
        self._has_document = False

    def paint(self, text: str, *styles: str) -> str:
        """Return the text in the given styles, where the terminal shows colours."""
        if not self._colour:
            return text
        return f"\x1b[{';'.join(STYLES[style] for style in styles)}m{text}\x1b[0m"

    def line(self, text: str = "") -> None:
        """Print a line for people."""
        if self.as_json:
            return
        self._clear()
        print(text, flush=True)

    def waiting(self, text: str) -> None:
        """Show what is going on in a line that the next one replaces; only on a terminal."""
        if not self.live:
            return
        frame = SPINNER[int(time.monotonic() * 10) % len(SPINNER)]
        self._clear()
        self._pending = f"  {self.paint(frame, 'cyan')} {text}"
        print(self._pending, end="", flush=True)

    def document(self, value: Any) -> None:
        """Print the result for programs."""
        self._has_document = True
        if self.as_json:
            print(json.dumps(value, indent=2), flush=True)

    def close(self, status: int) -> None:
        """End a command: one that failed without a document of its own gets one."""
        if status and not self._has_document:
            self.document({"error": self._last_error, "exitStatus": status})

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows in aligned columns."""
        widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
        self.line(
            self.paint(
                "  ".join(c.upper().ljust(w) for c, w in zip(header, widths, strict=True)).rstrip(), "dim"
            )
        )
        for row in rows:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def error(self, text: str, details: Sequence[str] = ()) -> None:
        """Print an error on standard error."""
        self._last_error = text
        self._clear()
        label = "\x1b[31merror:\x1b[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else "error:"
        print(f"{label} {text}", file=sys.stderr)
        for detail in details:
            print(f"  {detail}", file=sys.stderr)
        sys.stderr.flush()

    def note(self, text: str) -> None:
        """Print on standard error what is not the answer itself."""
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._pending:
            print("\r\x1b[2K", end="")
            self._pending = ""


def size(octets: int) -> str:
    """Return a number of bytes for people: `2.1 KiB`."""
    amount = float(octets)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def ago(then_ms: int) -> str:
    """Return how long ago a moment was: `3 min ago`."""
    seconds = max(0, int(time.time() - then_ms / 1000))
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
