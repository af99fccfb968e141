"""Weights and KV are asked for ahead: compilers take a function that only does so for one without
effects and may leave its calls out, which costs a third of the speed and no result.
"""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

OBJECT = "build/*/CMakeFiles/mm_kernels.dir/csrc/kernels/cpu/{}.cpp.o"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an instruction of x86")
@pytest.mark.parametrize("level", ["avx2", "avx512"])
@pytest.mark.parametrize("kernel", ["gemm", "group", "attention"])
def test_products_and_attention_ask_for_far_memory(kernel: str, level: str) -> None:
    root = Path(__file__).resolve().parents[2]
    objects = list(root.glob(OBJECT.format(f"{kernel}_{level}")))
    assert objects, "expected what tools/dev built"
    newest = max(objects, key=lambda path: path.stat().st_mtime)
    command = ["objdump", "--disassemble", "--no-show-raw-insn", newest]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"\bprefetcht1\b", listing)) >= 8  # one turn, unrolled
