"""The types of the KV cache: what they take, and what the one that clamps says of it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import mmengine
from support.outcomes import greedy, outcome

Tiny = Callable[..., str]
PROMPTS = [[3, 14, 15, 92, 65, 35, 89, 79] * 5, [2, 7, 1], [8, 2, 8]]


@pytest.fixture(scope="module")
def huge_values(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose v lie far beyond 448, all of them, in every layer."""
    path = tmp_path_factory.mktemp("huge") / "model"
    shutil.copytree(tiny(), path)
    file = Path(path) / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("v_proj.weight"):
            tensors[name] *= 1e9
    save_file(tensors, file)
    return str(path)


@pytest.mark.parametrize("device", ["cpu", "ref"])
@pytest.mark.parametrize("head_dim", [8, 24])
def test_bytes_of_a_token(head_dim: int, device: str, tiny: Tiny) -> None:
    path = tiny(heads=4, kv_heads=2, head_dim=head_dim)
    pools = {}
    for kv_dtype in ("f32", "bf16", "fp8"):
        with mmengine.Engine(path, device=device, kv_dtype=kv_dtype, kv_blocks=9) as engine:
            plan = engine.plan()
        assert plan.kv_dtype == kv_dtype
        pools[kv_dtype] = dict(plan.regions)["kv_blocks"]
        tokens = (9 + 1) * plan.kv_block_tokens  # one block is scrap
        assert pools[kv_dtype] == tokens * plan.kv_bytes_per_token[kv_dtype]
    assert pools["f32"] == 2 * pools["bf16"] == 4 * pools["fp8"]


def test_auto_never_means_fp8(tiny: Tiny) -> None:
    for dtype, expected in (("f32", "f32"), ("bf16", "bf16"), ("fp8", "bf16")):
        layout = "mistral" if dtype == "fp8" else "hf"
        with mmengine.Engine(tiny(dtype=dtype, layout=layout), device="cpu") as engine:
            assert engine.plan().kv_dtype == expected


def test_cpu_and_ref_agree(tiny: Tiny) -> None:
    """On the tokens, which differ from those of a KV cache in f32."""
    answers = {}
    for device, kv_dtype in (("cpu", "fp8"), ("ref", "fp8"), ("cpu", "f32")):
        with mmengine.Engine(tiny(seed=5), device=device, kv_dtype=kv_dtype) as engine:
            completions = engine.generate(PROMPTS, greedy(max_tokens=40))
        answers[device, kv_dtype] = [completion.token_ids for completion in completions]
    assert answers["cpu", "fp8"] == answers["ref", "fp8"]
    assert answers["cpu", "fp8"] != answers["cpu", "f32"]


@pytest.mark.parametrize("device", ["cpu", "ref"])
def test_every_clamped_element_is_counted(device: str, huge_values: str) -> None:
    info = mmengine.inspect(huge_values)["config"]
    each = info["num_layers"] * info["num_kv_heads"] * info["head_dim"]  # v; no k is that large
    engine = mmengine.Engine(huge_values, device=device, kv_dtype="fp8", prefix_cache=False)
    seen: list[int] = []
    with engine:
        assert engine.stats().kv_saturated == 0
        rows = 0
        for prompts in (PROMPTS[:1], PROMPTS, PROMPTS[1:]):
            completions = engine.generate(prompts, greedy(max_tokens=6))
            # The KV of the last token is not computed.
            rows += sum(len(prompt) + 6 - 1 for prompt in prompts)
            assert all(len(completion.token_ids) == 6 for completion in completions)
            assert engine.stats().kv_saturated == rows * each
        reader = threading.Thread(target=lambda: seen.append(engine.stats().kv_saturated))
        reader.start()
        reader.join()
        assert seen == [rows * each]
        assert repr(engine.stats()).endswith(f"; {rows * each} elements of KV clamped>")


def test_clamped_values_are_finite_and_the_same_for_all(huge_values: str) -> None:
    answers = []
    for threads, prefill_chunk in ((1, None), (2, 7), (3, 1)):
        engine = mmengine.Engine(
            huge_values,
            device="cpu",
            kv_dtype="fp8",
            threads=threads,
            prefill_chunk=prefill_chunk,
        )
        with engine:
            completions = engine.generate(PROMPTS, greedy(max_tokens=6, logprobs=2))
            answers.append([outcome(completion) for completion in completions])
            counted = engine.stats().kv_saturated
        assert counted > 0
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("kv_dtype", ["f32", "bf16"])
def test_other_types_clamp_nothing(kv_dtype: str, huge_values: str) -> None:
    with mmengine.Engine(huge_values, device="cpu", kv_dtype=kv_dtype) as engine:
        engine.generate(PROMPTS, greedy(max_tokens=4))
        assert engine.stats().kv_saturated == 0
