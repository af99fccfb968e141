"""The engines that tools/bench_peers.py compares, each in a process of its own: one file for each.

`worker` is the side of such a process, `process` the side that asks it; `formats` and
`hugging_face` make the files of the peers, `table` the result. The peers' own files import nothing
of mmengine and need build/peers-venv; `worker` runs in both environments.
"""
