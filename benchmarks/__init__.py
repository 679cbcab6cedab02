"""Measures ipyportal beside its peers: ``python -m benchmarks`` in the repository's root.

Numbers of one machine say little on another; ratios do. So each row runs ours and a peer in turn, round by round, and
gives the median of the rounds' ratios. The peers come with ``pip install -e '.[bench]'``; a row whose peer is not
installed is skipped.

`measure` is the method; `engine`, `memory`, `notebook`, `startup` and `peers` are the rows; `report` is what is made of
them.
"""
