"""Which engines there are, and the files they load, made once in build/peers from the demo model.

All come from one GGUF file (Q4_1, its embedding Q8_0), so that all have the same weights as far as
their types can hold them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader

from mmengine import cache, convert
from peers.hugging_face import write_checkpoint

OURS = ("bf16", "fp8", "int8", "int4")
LLAMA = ("F32", "F16", "BF16", "Q8_0", "Q4_1")
CTRANSLATE = ("float32", "int8")
TRANSFORMERS = ("f32", "bf16")
NAMES = (
    *(f"mmengine-{dtype}" for dtype in OURS),
    *(f"llama.cpp-{dtype}" for dtype in LLAMA),
    *(f"ctranslate2-{dtype}" for dtype in CTRANSLATE),
    *(f"transformers-{dtype}" for dtype in TRANSFORMERS),
)


@dataclass(frozen=True, slots=True)
class Files:
    """Makes what an engine loads where it is not there yet; `peers` is the peers' Python."""

    folder: Path
    peers: str
    on_make: Callable[[str], None] = lambda what: None

    def command(self, name: str, threads: int) -> list[str]:
        """The command of the process of the engine `name`, one of NAMES."""
        engine, _, dtype = name.rpartition("-")
        if engine == "mmengine":
            return [sys.executable, "-m", "peers.ours", dtype, str(threads)]
        if engine == "llama.cpp":
            return self._peer("llama", str(self.gguf(dtype)), str(threads))
        if engine == "ctranslate2":
            return self._peer("ctranslate", str(self._ctranslate()), dtype, str(threads))
        folder = str(self._hugging_face())
        return self._peer("torch_transformers", folder, dtype, str(threads))

    def gguf(self, dtype: str) -> Path:
        """The GGUF file of a format; Q4_1 is the demo model itself."""
        source = cache.fetch(cache.DEMO)
        if dtype == "Q4_1":
            return source
        path = self.folder / f"{dtype}.gguf"
        return self._made(path, "llama", str(source), str(path), dtype)

    def embedding_type(self, dtype: str) -> str:
        """The type that the embedding, which is the head, too, has in a format."""
        tensors = GGUFReader(self.gguf(dtype)).tensors
        return str(next(t.tensor_type.name for t in tensors if t.name == "token_embd.weight"))

    def _hugging_face(self) -> Path:
        source, path = self.folder / "f32", self.folder / "hf"
        if not path.is_dir():
            self.on_make(str(path))
            if not source.is_dir():
                convert.convert(cache.fetch(cache.DEMO), source, weight_dtype="f32")
            write_checkpoint(source, path)
        return path

    def _ctranslate(self) -> Path:
        path = self.folder / "ct2"
        return self._made(path, "ctranslate", str(self._hugging_face()), str(path))

    def _made(self, path: Path, module: str, *arguments: str) -> Path:
        if not path.exists():
            self.on_make(str(path))
            done = subprocess.run(
                self._peer(module, "--make", *arguments),
                check=False, capture_output=True, text=True, errors="replace",
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"{path}: could not be made: {done.stderr[-2000:]}")
        return path

    def _peer(self, module: str, *arguments: str) -> list[str]:
        return [self.peers, "-m", f"peers.{module}", *arguments]
