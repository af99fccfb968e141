"""llama.cpp with one GGUF file: python -m peers.llama FILE THREADS; --make makes another format.

Its AMX code crashes on virtual machines that only claim to have it. So that it is as fast as it can
be, a process of its own (--try) finds out whether its extra buffer types (AMX, repacked weights)
work here; where it dies, they are switched off, and `about` says so.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp as llama
import numpy as np
import numpy.typing as npt

from peers.worker import mean_nll, serve

CONTEXT = 2048
UBATCH = 512


class LlamaCpp:
    """One model and one context of llama.cpp's C interface, without the Python class around it."""

    def __init__(self, path: str, threads: int, extra_buffers: bool) -> None:
        options = llama.llama_model_default_params()
        options.use_extra_bufts = extra_buffers
        self._model = llama.llama_model_load_from_file(path.encode(), options)
        if not self._model:
            raise SystemExit(f"{path}: could not be loaded")
        context = llama.llama_context_default_params()
        context.n_ctx = context.n_batch = CONTEXT
        context.n_ubatch = UBATCH
        context.n_threads = context.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, context)
        self._batch = llama.llama_batch_init(CONTEXT, 0, 1)
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        system = llama.llama_print_system_info().decode().replace(" = 1", "").replace(" | ", " ")
        extra = "on" if extra_buffers else "off, they crash here"
        self.about = (
            f"llama-cpp-python {llama.__version__}, extra buffers {extra}; {system.strip()}"
        )

    def run(self, prompt: list[int], gen: int) -> tuple[float, float]:
        """As Peer.run."""
        self._clear()
        began_at = time.perf_counter()
        token = self._next(prompt, 0)
        first_at = time.perf_counter()
        for step in range(gen):
            token = self._next([token], len(prompt) + step)
        return first_at - began_at, time.perf_counter() - first_at

    def nll(self, ids: list[int]) -> float:
        """As Peer.nll."""
        self._clear()
        self._decode(ids, 0, every_row=True)
        return mean_nll(self._logits(0, len(ids)), ids)

    def _clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)

    def _next(self, tokens: list[int], position: int) -> int:
        self._decode(tokens, position, every_row=False)
        return int(self._logits(len(tokens) - 1, 1)[0].argmax())

    def _logits(self, first: int, rows: int) -> npt.NDArray[np.float32]:
        at = llama.llama_get_logits_ith(self._context, first)
        return np.ctypeslib.as_array(at, (rows, self._vocab))

    def _decode(self, tokens: list[int], position: int, every_row: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every_row or i == len(tokens) - 1
        if code := llama.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode: expected 0, got {code}")


def quantize(source: str, destination: str, format_name: str) -> None:
    """Writes `source` in another format, all of its matrices, the embedding too where it can."""
    options = llama.llama_model_quantize_default_params()
    kind = "ALL" if format_name == "F32" else "MOSTLY"
    options.ftype = getattr(llama, f"LLAMA_FTYPE_{kind}_{format_name}")
    options.allow_requantize = True
    partial = Path(destination + ".partial")
    code = llama.llama_model_quantize(source.encode(), str(partial).encode(), ctypes.byref(options))
    if code:
        raise SystemExit(f"llama_model_quantize: expected 0, got {code}")
    partial.rename(destination)


def extra_buffers_work(path: str, threads: int) -> bool:
    """Whether a process that uses them lives through a prompt and a step."""
    command = [sys.executable, "-m", "peers.llama", "--try", path, str(threads)]
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0


def main(arguments: list[str]) -> None:
    silence = llama.llama_log_callback(lambda *_: None)  # kept: the library calls it later
    llama.llama_log_set(silence, None)
    llama.llama_backend_init()
    match arguments:
        case ["--make", source, destination, format_name]:
            quantize(source, destination, format_name)
        case ["--try", path, threads]:
            LlamaCpp(path, int(threads), True).run(list(range(1, 65)), 2)
        case [path, threads]:
            count = int(threads)
            serve(lambda: LlamaCpp(path, count, extra_buffers_work(path, count)))


if __name__ == "__main__":
    main(sys.argv[1:])
