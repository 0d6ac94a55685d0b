"""The service that Restate's side of the workflow benchmark runs: a virtual object of ten `ctx.run` steps.

Served by hypercorn over HTTP/2, in the environment that `benchmarks.restate_side` makes for it.
"""

import restate  # type: ignore[import-not-found, unused-ignore]

STEPS = 10

bench = restate.VirtualObject("bench")


@bench.handler()  # type: ignore[misc, unused-ignore]
async def ten(ctx: restate.ObjectContext, value: int) -> int:
    """Run ten steps that do nothing."""
    for number in range(STEPS):
        await ctx.run_typed(f"step_{number}", lambda number=number: number)
    return value


app = restate.app([bench])
