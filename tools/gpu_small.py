"""A tiny model, a few tokens in every type of weights and KV: what tools/dev gpu sanitizes.

Usage: gpu_small.py [DEVICE], by default cuda. Prints one line per type with the tokens.
"""

from __future__ import annotations

import sys
import tempfile

from make_tiny_model import make_tiny_model

import mmengine

TYPES = (("bf16", "bf16"), ("bf16", "fp8"), ("fp8", "bf16"), ("fp8", "fp8"))
PROMPTS = ([3, 14, 15, 92, 65], list(range(1, 80)), [7])


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    greedy = mmengine.SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    drawn = mmengine.SamplingParams(
        max_tokens=4, temperature=0.8, top_k=20, top_p=0.9, seed=5, ignore_eos=True
    )
    with tempfile.TemporaryDirectory() as directory:
        make_tiny_model(directory, layout="mistral", seed=9)
        for weight_dtype, kv_dtype in TYPES:
            options = {"weight_dtype": weight_dtype, "kv_dtype": kv_dtype, "prefill_chunk": 32}
            with mmengine.Engine(directory, device=device, **options) as engine:
                for params in (greedy, drawn):
                    answers = engine.generate(list(PROMPTS), params)
                    tokens = [answer.token_ids for answer in answers]
                    print(weight_dtype, kv_dtype, params.temperature, tokens, flush=True)


if __name__ == "__main__":
    main()
