"""What llama.cpp makes of the whole run that `mm-run bench` prints: many requests side by side.

    pip install llama-cpp-python    # into an environment of its own; it is no dependency
    python tools/bench_llama_batched.py SmolLM2-135M-Instruct.Q4_1.gguf

All prompts enter one llama_batch, then each step has one token of every sequence; ids are random,
answers greedy. The GGUF file of the demo model lies in the cache, in fetched/.
"""

from __future__ import annotations

import argparse
import statistics
import time

import llama_cpp as llama
import numpy as np


def fill(batch: llama.llama_batch, rows: list[tuple[int, int, int, bool]]) -> None:
    """rows: (token, position, sequence, whether its logits are wanted)."""
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence


def decode(context: llama.llama_context_p, batch: llama.llama_batch) -> None:
    if code := llama.llama_decode(context, batch):
        raise SystemExit(f"llama_decode: expected 0, got {code}")


def whole_run(
    context: llama.llama_context_p, batch: llama.llama_batch, prompts: list[list[int]], gen: int
) -> float:
    """Seconds from the first prompt to the last token of all sequences."""
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(llama.llama_get_model(context)))
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    began_at = time.perf_counter()
    last = len(prompts[0]) - 1
    rows = [
        (token, i, s, i == last) for s, ids in enumerate(prompts) for i, token in enumerate(ids)
    ]
    fill(batch, rows)
    decode(context, batch)
    wanted = [i for i, row in enumerate(rows) if row[3]]
    for step in range(gen):
        tokens = [
            int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (vocab,)).argmax())
            for i in wanted
        ]
        if step == gen - 1:  # the last token is not fed
            break
        fill(batch, [(token, last + 1 + step, s, True) for s, token in enumerate(tokens)])
        decode(context, batch)
        wanted = list(range(len(tokens)))
    return time.perf_counter() - began_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="GGUF file")
    for flag, default in (
        *(("--requests", 16), ("--prompt-tokens", 128), ("--gen-tokens", 128)),
        *(("--threads", 2), ("--repeat", 3)),
    ):
        parser.add_argument(flag, type=int, default=default)
    args = parser.parse_args()
    silence = llama.llama_log_callback(lambda *_: None)  # kept: the library calls it later
    llama.llama_log_set(silence, None)
    llama.llama_backend_init()
    loading = llama.llama_model_default_params()
    loading.use_extra_bufts = False  # AMX, which crashes on virtual machines that only claim it
    model = llama.llama_model_load_from_file(args.model.encode(), loading)
    if not model:
        raise SystemExit(f"{args.model}: could not be loaded")
    options = llama.llama_context_default_params()
    all_tokens = args.requests * (args.prompt_tokens + args.gen_tokens)
    options.n_ctx, options.n_seq_max, options.kv_unified = all_tokens, args.requests, False
    options.n_batch = args.requests * args.prompt_tokens
    options.n_threads = options.n_threads_batch = args.threads
    context = llama.llama_init_from_model(model, options)
    batch = llama.llama_batch_init(options.n_batch, 0, 1)
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(args.repeat + 1):  # the first one warms up
        ids = random.integers(0, vocab, (args.requests, args.prompt_tokens)).tolist()
        seconds.append(whole_run(context, batch, ids, args.gen_tokens))
    rate = args.requests * args.gen_tokens / statistics.median(seconds[1:])
    print(
        f"whole run: {args.requests} requests of {args.prompt_tokens} in / {args.gen_tokens} out: "
        f"{rate:.1f} tok/s (llama.cpp, {args.threads} threads)"
    )


if __name__ == "__main__":
    main()
