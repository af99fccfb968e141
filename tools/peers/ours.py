"""mmengine with one weight type, by its Python interface: python -m peers.ours TYPE THREADS."""

from __future__ import annotations

import sys

import mmengine
from mmengine.bench import measure_stream
from peers.worker import mean_nll, serve


class Ours:
    """The demo model, as `mmengine.Engine("smollm2", weight_dtype=...)` has it."""

    def __init__(self, weight_dtype: str, threads: int) -> None:
        self._engine = mmengine.Engine(
            "smollm2",
            device="cpu",
            weight_dtype=weight_dtype,
            threads=threads,
            max_context=2048,
            max_batch=1,
            prefix_cache=False,  # a run that is made again has the same prompt
            progress=False,
        )
        if self._engine.weight_dtype != weight_dtype:
            raise SystemExit(f"expected {weight_dtype} weights, got {self._engine.weight_dtype}")
        self.about = f"mmengine {mmengine.__version__}, {self._engine.description}"

    def run(self, prompt: list[int], gen: int) -> tuple[float, float]:
        """As Peer.run."""
        return measure_stream(self._engine, prompt, gen)

    def nll(self, ids: list[int]) -> float:
        """As Peer.nll."""
        return mean_nll(self._engine.logits(ids), ids)


if __name__ == "__main__":
    serve(lambda: Ours(sys.argv[1], int(sys.argv[2])))
