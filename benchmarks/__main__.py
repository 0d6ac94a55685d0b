"""`make bench`: runs every benchmark, each beside its baseline, and prints which met its bar."""

import subprocess
import sys

BENCHMARKS = (
    "verify",
    "limit",
    "management",
    "revocation",
    "proxy",
    "policies",
    "tls",
    "workflow",
    "recover",
    "deploy",
    "switch",
    "feed",
)


def main() -> int:
    """Run the benchmarks that are named, or all; returns 1 when one is past its bar or failed."""
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}",
            file=sys.stderr,
        )
        return 2
    outcomes: dict[str, bool] = {}
    for name in names:
        print(f"\n== {name}", flush=True)
        outcomes[name] = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode == 0
    print("\n" + "  ".join(f"{name}: {'ok' if ok else 'MISSED'}" for name, ok in outcomes.items()))
    return int(not all(outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
