"""`map`: a function of many items at once, from synchronous code.

The caller and the place where the items run each have their part. The caller (`results`), in its own thread, draws
items from the iterables as there is room, and takes what has come of them. In the place, a pool (`pool`) has a few
runners, which take one item after the other. The two meet in `ItemPool.exchange`, a step: items in, wait until
something is over.
"""

from ipyportal.mapping.map import map
from ipyportal.mapping.results import Results

__all__ = ["Results", "map"]
