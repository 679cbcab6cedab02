"""Suspending: synchronous code stands still, and the event loop of its thread goes on.

`suspending` has the two questions (`can_suspend`, `suspend`). Two mechanisms answer them: `turns`, on loops of
asyncio's own kind, whatever code it is; and `steps`, for one coroutine that was made so, on any loop. In a browser it
is `jspi`; `driving` is what that shares with `turns`. `loops` says which loops have turns; `callers` is the code that
stands still there, `workers` what runs the loop meanwhile, `loop_internals` what is private of asyncio. `abandoned` is
a wait that is given up. `stacks` shows where code stands.
"""

from ipyportal.concurrency.suspension.stacks import suspended_stacks
from ipyportal.concurrency.suspension.suspending import can_suspend, suspend

__all__ = ["can_suspend", "suspend", "suspended_stacks"]
