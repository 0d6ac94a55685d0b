"""Prometheus text from plain counters: the hot path adds integers, a scrape adds them up."""

from collections.abc import Callable, Iterable, Mapping

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def sample(name: str, labels: Labels, value: float) -> str:
    """Return one line of the text format."""
    inside = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
    text = str(int(value)) if isinstance(value, int) else f"{value:.9g}"  # a flag is 1 or 0
    return f"{name}{{{inside}}} {text}" if inside else f"{name} {text}"


def histogram(
    name: str, labels: Labels, bounds: Iterable[float], counts: list[int], total: float
) -> list[str]:
    """Return the lines of a histogram.

    Args:
        bounds: upper bounds, without infinity.
        counts: observations per bucket, not yet added up; one more than bounds.
        total: sum of the observed values.
    """
    lines, sum_so_far = [], 0
    for bound, count in zip([*bounds, float("inf")], counts, strict=True):
        sum_so_far += count
        text = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(sample(f"{name}_bucket", {**labels, "le": text}, sum_so_far))
    lines.append(sample(f"{name}_sum", labels, total))
    lines.append(sample(f"{name}_count", labels, sum_so_far))
    return lines


class Registry:
    """Collects families of metrics at scrape time.

    A family is registered with a function that reads the counters of whoever counts.
    """

    def __init__(self) -> None:
        self._families: list[tuple[str, str, str, Callable[[], list[str]]]] = []

    def add(self, name: str, kind: str, text: str, read: Callable[[], Iterable[Sample]]) -> None:
        """Register a counter or gauge; `read` gives its samples."""
        self._families.append((name, kind, text, lambda: [sample(*each) for each in read()]))

    def add_histogram(self, name: str, text: str, read: Callable[[], list[str]]) -> None:
        """Register a histogram; `read` gives its lines."""
        self._families.append((name, "histogram", text, read))

    def render(self) -> bytes:
        """Return the exposition text."""
        lines: list[str] = []
        for name, kind, text, read in self._families:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *read()]
        return "\n".join([*lines, ""]).encode()
