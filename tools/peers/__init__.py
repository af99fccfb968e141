"""The engines that tools/bench_peers.py compares, each in a process of its own: one file for each.

`worker` is the side of such a process, `process` the side that asks it; `formats` makes the files
of the peers, `table` the result. Only `ours` imports mmengine, the peers need build/peers-venv.
"""
