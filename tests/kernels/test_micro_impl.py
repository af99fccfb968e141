"""Weights are asked for ahead: compilers take a function that only does so for one without effects
and may leave its calls out, which costs a third of the speed and no result.
"""

from __future__ import annotations

import platform
import re
import subprocess

import pytest

from mmengine import _core


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an instruction of x86")
def test_the_products_ask_for_far_memory() -> None:
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", _core.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    asked = len(re.findall(r"\bprefetcht1\b", listing))
    # Of eight pages, for at least one product each of f32, bf16, fp8, int8 and int4 on two levels.
    assert asked >= 8 * 5 * 2
