"""How many instances a deployment needs, by their load: the arithmetic of Kubernetes' autoscaler.

Nothing here measures, waits or starts anything: a decision is a function of what was measured and of what
was decided before. As there (https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/,
"Algorithm details"):

- wanted = ceil(instances x load / threshold), of several loads the greatest; within 10 % nothing changes;
- an instance that cannot be measured, since it starts or has just started again, counts as idle where
  there would be more instances, and as just busy enough where there would be fewer;
- more at once, but at most twice as many, or four more, a time;
- fewer only when all that was wanted within the last minute was fewer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.1
GROWTH = 4


@dataclass(frozen=True, slots=True)
class Policy:
    """What the environment's owner has chosen.

    Args:
        least: instances at least.
        most: instances at most, not fewer than `least`.
        cpu: percent of an instance's CPU that is aimed at.
        memory: the same of its memory; None: memory does not matter.
    """

    least: int
    most: int
    cpu: int = 80
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What one instance uses of what it may use, in percent."""

    cpu: float
    memory: float = 0.0


@dataclass(frozen=True, slots=True)
class Wish:
    """How many instances were wanted at a moment (seconds of a clock that never goes back)."""

    at: float
    count: int


@dataclass(frozen=True, slots=True)
class Decision:
    """How many instances there should be from now on.

    Args:
        count: so many.
        wishes: what to hand to the next decision.
        why: the load that decided, in words; empty where nothing changes.
    """

    count: int
    wishes: tuple[Wish, ...]
    why: str = ""


def decide(
    policy: Policy,
    current: int,
    loads: Sequence[Load | None],
    wishes: Sequence[Wish],
    now: float,
    calm_seconds: float,
) -> Decision:
    """Return how many instances there should be.

    Args:
        policy: bounds and thresholds.
        current: how many there should have been until now.
        loads: of every instance, None where it cannot be measured.
        wishes: of the last decision; at first one that wants `current`, so that a new agent takes nothing
            away before it has looked for long enough.
        now: seconds, of the clock of the wishes.
        calm_seconds: for so long fewer must be wanted before there are fewer.
    """
    wanted, why = wanted_by(policy, current, loads)
    kept = (*(wish for wish in wishes if wish.at > now - calm_seconds), Wish(now, wanted))
    if wanted > current:
        count = min(wanted, max(2 * current, current + GROWTH))
    else:
        count = min(current, max(wish.count for wish in kept))
    count = min(max(count, policy.least), policy.most)
    return Decision(count, kept, why if count != current else "")


def wanted_by(policy: Policy, current: int, loads: Sequence[Load | None]) -> tuple[int, str]:
    """Return how many instances the load asks for, within the policy's bounds, and the load in words."""
    measured = [load for load in loads if load is not None]
    unknown = len(loads) - len(measured)
    found = [_one(current, [load.cpu for load in measured], unknown, policy.cpu, "CPU")]
    if policy.memory is not None:
        found.append(_one(current, [load.memory for load in measured], unknown, policy.memory, "memory"))
    wanted, why = max(found, key=lambda each: each[0])
    return min(max(wanted, policy.least), policy.most), why


def _one(current: int, shares: list[float], unknown: int, threshold: int, what: str) -> tuple[int, str]:
    if not shares:
        return current, ""
    mean = sum(shares) / len(shares)
    why = f"{what} at {mean:.0f} %, {threshold} % is aimed at"
    ratio = mean / threshold
    if unknown:
        assumed = float(threshold) if ratio < 1 else 0.0
        fuller = (sum(shares) + assumed * unknown) / (len(shares) + unknown) / threshold
        if (fuller - 1) * (ratio - 1) <= 0:
            return current, why  # what is not known decides: wait until it is
        ratio = fuller
    if abs(ratio - 1) <= TOLERANCE:
        return current, why
    wanted = math.ceil(ratio * (len(shares) + unknown))
    # Instances that are not there yet, or not any more, never turn the direction.
    return (max(wanted, current) if ratio > 1 else min(wanted, current)), why
