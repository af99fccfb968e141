"""CTranslate2: python -m peers.ctranslate FOLDER float32|int8 THREADS; --make converts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ctranslate2
import numpy as np

from peers.worker import mean_nll, serve


class CTranslate2:
    """A Generator; `compute_type` int8 rounds the float32 weights of the folder when it loads."""

    def __init__(self, folder: str, compute_type: str, threads: int) -> None:
        self._generator = ctranslate2.Generator(
            folder, compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
        self._tokens: list[str] = json.loads((Path(folder) / "vocabulary.json").read_text("utf-8"))
        got = self._generator.compute_type
        self.about = f"ctranslate2 {ctranslate2.__version__}, computes in {got}"

    def run(self, prompt: list[int], gen: int) -> tuple[float, float]:
        """As Peer.run."""
        arrivals: list[float] = []

        def arrived(step: ctranslate2.GenerationStepResult) -> bool:
            arrivals.append(time.perf_counter())
            return False  # go on

        began_at = time.perf_counter()
        self._generator.generate_batch(
            [[self._tokens[token] for token in prompt]],
            max_length=gen + 1,
            min_length=gen + 1,
            sampling_topk=1,
            include_prompt_in_result=False,  # the prompt is one forward pass
            callback=arrived,
        )
        if len(arrivals) != gen + 1:
            raise SystemExit(f"expected {gen + 1} tokens, got {len(arrivals)}")
        return arrivals[0] - began_at, arrivals[-1] - arrivals[0]

    def nll(self, ids: list[int]) -> float:
        """As Peer.nll."""
        logits = self._generator.forward_batch([ids])
        return mean_nll(np.asarray(logits)[0].astype(np.float32), ids)


def convert(source: str, destination: Path) -> None:
    partial = destination.with_name(destination.name + ".partial")
    converter = ctranslate2.converters.TransformersConverter(source)
    converter.convert(str(partial), quantization="float32", force=True)
    partial.rename(destination)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--make", source, destination]:
            convert(source, Path(destination))
        case [folder, compute_type, threads]:
            serve(lambda: CTranslate2(folder, compute_type, int(threads)))
