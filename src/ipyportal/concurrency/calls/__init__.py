"""Calls: a function that runs once, somewhere, and what has become of it.

`Call` is built in three layers: `outcomes` (state, result, who is told), `execution` (begin, deadline, cancel, end)
and `call` (run it, wait for it). `tasks` runs one in a task of a loop. `call` has `Portal`, too, the place where calls
run: the two are made of each other.
"""

from ipyportal.concurrency.calls.call import Call, Portal, current_call
from ipyportal.concurrency.calls.outcomes import State

__all__ = ["Call", "Portal", "State", "current_call"]
