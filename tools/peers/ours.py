"""mmengine with one weight type, by its Python interface: python -m peers.ours TYPE THREADS."""

from __future__ import annotations

import sys
import time

import mmengine
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
        params = mmengine.SamplingParams(max_tokens=gen + 1, temperature=0.0, ignore_eos=True)
        arrivals: list[tuple[float, int]] = []
        began_at = time.perf_counter()
        for delta in self._engine.stream(prompt, params):
            if delta.token_ids:
                arrivals.append((time.perf_counter(), len(delta.token_ids)))
        if (got := sum(count for _, count in arrivals)) != gen + 1:
            raise SystemExit(f"expected {gen + 1} tokens, got {got}")
        (first_at, first_count), (last_at, _) = arrivals[0], arrivals[-1]
        # A first delta of several tokens holds steps, too: scale by the steps that were timed.
        return first_at - began_at, (last_at - first_at) * gen / (gen + 1 - first_count)

    def nll(self, ids: list[int]) -> float:
        """As Peer.nll."""
        return mean_nll(self._engine.logits(ids), ids)


if __name__ == "__main__":
    serve(lambda: Ours(sys.argv[1], int(sys.argv[2])))
