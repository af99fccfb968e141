"""Whole engines on device cuda, emulated where the build has no CUDA, beside those on the cpu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmengine import _testing_api as host
from mmengine import _testing_kernels, errors

pytestmark = pytest.mark.skipif(
    "cuda" not in _testing_kernels.backends(),
    reason="a build with CUDA, and no GPU that it runs on",
)
Tiny = Callable[..., str]
MODELS: dict[str, dict[str, Any]] = {
    "bf16 llama": {"dtype": "bf16"},
    "tied mistral": {"dtype": "bf16", "architecture": "mistral", "tied": True, "layout": "mistral"},
    "fp8 static": {"dtype": "fp8", "activations": "static", "architecture": "ministral3"},
    "fp8 dynamic": {"dtype": "fp8", "activations": "dynamic", "architecture": "ministral3"},
}


def prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(3, 97, n).tolist() for n in lengths]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8"])
def test_answers_are_those_of_the_cpu(name: str, kv_dtype: str, tiny: Tiny) -> None:
    directory = tiny(**MODELS[name])
    given = prompts(5, 70, 33)
    cuda, cpu = (
        host.answers(directory, device, given, 6, kv_dtype=kv_dtype) for device in ("cuda", "cpu")
    )
    for a, b in zip(cuda, cpu, strict=True):
        assert a.ids == b.ids
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-2)


def test_an_answer_is_the_same_in_any_company(tiny: Tiny) -> None:
    directory = tiny(dtype="bf16")
    given = prompts(9, 40, 66)
    together = host.answers(directory, "cuda", given, 5, prefill_chunk=16)
    for i, prompt in enumerate(given):
        (alone,) = host.answers(directory, "cuda", [prompt], 5, prefill_chunk=64)
        assert (alone.ids, alone.logprobs) == (together[i].ids, together[i].logprobs)


def test_weights_that_it_does_not_multiply_with_are_refused(tiny: Tiny) -> None:
    with pytest.raises(errors.UnsupportedModelError, match="bf16 and fp8, got f32; ask for one"):
        host.answers(tiny(), "cuda", prompts(3), 1)


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda:-1", "cuda:1000"])
def test_devices_have_numbers(device: str, tiny: Tiny) -> None:
    with pytest.raises(errors.UsageError, match="device: expected auto, cpu, ref, cuda or cuda:0"):
        host.answers(tiny(), device, prompts(3), 1)
