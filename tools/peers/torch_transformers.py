"""transformers: python -m peers.torch_transformers FOLDER f32|bf16 THREADS.

FOLDER is a Hugging Face checkpoint. The loop is the bare model with its KV cache, without
generate() and what that does around each step.
"""

from __future__ import annotations

import sys
import time

import torch
import transformers

from peers.worker import mean_nll, serve

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Transformers:
    """LlamaForCausalLM of one dtype."""

    def __init__(self, folder: str, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        transformers.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
        self._model.eval()
        attention = self._model.config._attn_implementation
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.about = f"{versions}, {attention} attention"

    def run(self, prompt: list[int], gen: int) -> tuple[float, float]:
        """As Peer.run."""
        began_at = time.perf_counter()
        token, past = self._step(torch.tensor([prompt]), None)
        first_at = time.perf_counter()
        for _ in range(gen):
            token, past = self._step(token, past)
        return first_at - began_at, time.perf_counter() - first_at

    def _step(self, ids: torch.Tensor, past: object) -> tuple[torch.Tensor, object]:
        out = self._model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.item()  # the id is known to the host
        return token, out.past_key_values

    def nll(self, ids: list[int]) -> float:
        """As Peer.nll."""
        logits = self._model(torch.tensor([ids]), use_cache=False).logits[0]
        return mean_nll(logits.float().numpy(), ids)


if __name__ == "__main__":
    folder, dtype, count = sys.argv[1:]
    serve(lambda: Transformers(folder, dtype, int(count)))
